"""The patch series applies to a pristine copy of the host, and there the shims are not needed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PATCHES = sorted((Path(__file__).parents[1] / "patches").glob("*.patch"))

PROBE = """
import json, torch
import verl, verl.trainer.ppo.v1
from verl.trainer.ppo.v1 import get_trainer_cls
from fgrpo_plugin.host import shims
import tests.host.test_policy_loss as t
import verl.utils.config
rows = t._rows()
config = t._actor_config(divergence="jensen_shannon", beta=0.3)
loss, _, gradient = t._run(rows, config, [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10, 11]])
print(json.dumps(dict(
    host=verl.__file__, applied=shims.APPLIED, refused=shims.REFUSED, loss=loss, gradient=gradient.tolist(),
    hooks=[hook.__module__ for hook in getattr(verl.utils.config, "CONFIG_HOOKS", [])],
    trainer=get_trainer_cls("sync").__name__)))
"""


def _probe(*paths: Path) -> dict:
    root = Path(__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, paths), str(root)])}
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=300, env=env, cwd=root)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def patched(tmp_path_factory) -> Path:
    import verl

    folder = tmp_path_factory.mktemp("host")
    shutil.copytree(Path(verl.__file__).parent, folder / "verl", ignore=shutil.ignore_patterns("__pycache__"))
    for patch in PATCHES:
        subprocess.run(["git", "apply", str(patch)], cwd=folder, check=True)
    return folder


def test_every_shim_has_its_patch():
    shims = Path(__file__).parents[1] / "fgrpo_plugin" / "host" / "shims"
    named = [path for path in shims.glob("*.py") if path.name != "__init__.py"]
    assert len(named) == len(PATCHES) == 4
    for shim in named:
        patch = shim.read_text().split("patches/")[1].split(".patch")[0]
        assert (PATCHES[0].parent / f"{patch}.patch").is_file(), shim


def test_with_the_patches_the_shims_switch_themselves_off_and_the_loss_is_identical(patched):
    stock, ours = _probe(), _probe(patched)
    assert stock["host"] != ours["host"] and str(patched) in ours["host"]
    assert stock["refused"] == ours["refused"] == {}
    assert set(stock["applied"].values()) == {"applied"} and len(stock["applied"]) == 4
    assert set(ours["applied"].values()) == {"not needed"} and ours["applied"].keys() == stock["applied"].keys()
    assert ours["hooks"] == ["fgrpo_plugin.host.shims.config_hook"]
    assert ours["trainer"] == stock["trainer"] == "FDivergencePPOTrainerSync"
    assert ours["loss"] == stock["loss"] and ours["gradient"] == stock["gradient"]


def test_the_patched_entry_point_completes_the_configuration(patched, inputs):
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *inputs, "algorithm.adv_estimator=f_grpo"]
    refused = ["algorithm.use_kl_in_reward=true", "hydra.run.dir=.", "hydra.output_subdir=null"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(patched), str(root)])}
    done = subprocess.run([*command, *refused], capture_output=True, text=True, timeout=120, env=env, cwd=patched)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("fgrpo-plugin: algorithm.use_kl_in_reward=true contradicts")
