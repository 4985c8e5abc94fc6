"""The command line and the environment of verl, and a check of the user's overrides before the warm-up."""

import os
import subprocess
import sys
from pathlib import Path

from fgrpo_plugin.processes import MARKER
from fgrpo_plugin.quickstart.inputs import RunInputs, hybrid_inputs
from fgrpo_plugin.quickstart.options import DIVERGENCES, QuickstartError, QuickstartOptions, is_users_own

MODEL_LEARNING_RATE = 1e-6
MODEL_OVERRIDES = tuple(
    f"actor_rollout_ref.{key}=8"
    for key in (
        "actor.ppo_micro_batch_size_per_gpu",
        "ref.log_prob_micro_batch_size_per_gpu",
        "rollout.log_prob_micro_batch_size_per_gpu",
    )
)
"""For MODEL=, a model of unknown size that was pretrained: what `conf/fgrpo/quickstart.yaml` has suits the tiny one."""


def host_command(run: Path, options: QuickstartOptions, steps: int, inputs: RunInputs, ray_folder: Path) -> list[str]:
    """The stock verl's command line; what does not depend on this run stands in ``conf/fgrpo/quickstart.yaml``."""
    f_divergence = "actor_rollout_ref.actor.policy_loss.f_divergence"
    overrides = [
        f"+fgrpo={'laptop_hybrid' if options.algo == 'f_hal' else 'quickstart'}",
        f"algorithm.adv_estimator={options.algo}",
        f"data.train_files={quoted(inputs.train)}",
        f"data.val_files={quoted(inputs.heldout)}",
        f"data.seed={options.seed}",
        f"actor_rollout_ref.model.path={quoted(inputs.model)}",
        f"actor_rollout_ref.rollout.seed={options.seed}",
        f"trainer.total_training_steps={steps}",
        f"trainer.default_local_dir={quoted(run / 'checkpoints')}",
        f"hydra.run.dir={quoted(run / 'logs' / 'hydra')}",
        f"+ray_kwargs.ray_init._temp_dir={quoted(ray_folder)}",
        *inputs.overrides,
    ]
    if is_users_own(options.model):
        overrides += [*MODEL_OVERRIDES, f"actor_rollout_ref.actor.optim.lr={MODEL_LEARNING_RATE}"]
    if options.algo == "f_grpo":
        overrides.append(f"+{f_divergence}.divergence={options.divergence or DIVERGENCES['f_grpo']}")
    if options.algo == "f_hal":
        overrides.append(f"{f_divergence}.divergence={options.divergence or DIVERGENCES['f_hal']}")
        overrides += [f"{f_divergence}.lam={options.lam}"] if options.lam is not None else []
    if options.learning_rate is not None:
        overrides.append(f"actor_rollout_ref.actor.optim.lr={options.learning_rate}")
    return [sys.executable, "-m", "verl.trainer.main_ppo", *overrides, *options.overrides]


def host_environment(run: Path, run_id: str) -> dict[str, str]:
    """The environment in which verl finds the CPU platform and writes its metrics as JSON lines."""
    return {
        **os.environ,
        MARKER: run_id,
        # Ray and vLLM change their processes' titles, which else overwrites the environment that holds the marker.
        "SPT_NOENV": "1",
        # A dozen processes share the cores; with a thread pool each they wait for one another in busy loops.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "VERL_PLATFORM": "cpu",
        "VERL_FILE_LOGGER_PATH": str(run / "metrics.jsonl"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }


def check_overrides(run: Path, options: QuickstartOptions, steps: int) -> None:
    """Compose and complete the configuration as verl will, before the warm-up: a user's key may be mistyped."""
    inputs = RunInputs(model=Path("model"), train=Path("*.parquet"), heldout=Path("*.parquet"), overrides=())
    if options.algo == "f_hal":
        inputs = hybrid_inputs(run, Path("model"))
    check_command(host_command(run, options, steps, inputs, run / "ray"), run)


def check_command(command: list[str], run: Path) -> None:
    """Compose and complete verl's configuration as its command would, in a process of its own.

    Args:
        command: words of verl's command.
        run: the run's folder.

    Raises:
        QuickstartError: one sentence, the composition's or ours.
    """
    words = [word for word in command[3:] if not word.startswith("hydra.")]
    program = (
        "from fgrpo_plugin.host.settings.compose import check_overrides; import sys; check_overrides(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], env=host_environment(run, ""), capture_output=True, text=True
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise QuickstartError(f"--override: {reason.removeprefix('ValueError: ')}")


def quoted(path: Path) -> str:
    """A path as a value of Hydra's, which takes a comma, a bracket or a letter beyond ASCII for its grammar's."""
    return "'" + str(path).replace("'", "\\'") + "'"
