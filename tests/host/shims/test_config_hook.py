"""Through the real entry point, and through another."""

import subprocess
import sys

from tests.support.overrides import SWITCH


def test_the_real_entry_point_ends_in_one_sentence_before_ray(inputs, tmp_path):
    refused = ["algorithm.use_kl_in_reward=true", "hydra.run.dir=.", "hydra.output_subdir=null"]
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *inputs, SWITCH, *refused]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("fgrpo-plugin: algorithm.use_kl_in_reward=true contradicts")
    assert "Traceback" not in done.stderr and "ray init" not in done.stdout


def test_another_entry_point_is_refused(inputs, tmp_path):
    script = tmp_path / "main_other.py"
    script.write_text(
        "import sys\n"
        "from hydra import compose, initialize_config_module\n"
        "from verl.utils.device import auto_set_device\n"
        "with initialize_config_module('verl.trainer.config', version_base=None):\n"
        "    config = compose('ppo_trainer', sys.argv[1:])\n"
        "auto_set_device(config)\n"
    )
    done = subprocess.run([sys.executable, str(script), *inputs, SWITCH], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "verl.trainer.main_ppo alone, not main_other.py" in done.stderr.strip().splitlines()[-1]
