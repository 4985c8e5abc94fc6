"""What test_patches.py and patches/check.py run in a process of its own: this package's loss and shims on some verl."""

import json

import verl
import verl.trainer.ppo.v1  # the trainers' shim waits for this import
import verl.utils.config
import verl.workers.rollout.vllm_rollout.vllm_rollout  # and that of the weight transfer for this one
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.v1 import get_trainer_cls

from fgrpo_plugin.host.contract import APPLIED, REFUSED
from fgrpo_plugin.host.worker.policy_loss import POLICY_LOSSES
from tests.support.micro_batches import actor_config, loss_rows, run_loss


def fields(name: str) -> list[str]:
    """Names of the batch fields that verl, or its shim, passes to a loss."""
    if hasattr(core_algos, "policy_loss_batch_fields"):
        return sorted(core_algos.policy_loss_batch_fields(name))
    return sorted(POLICY_LOSSES[name].batch_fields)


def refusals(config) -> dict[str, str]:
    """What is said to a run that got past, or around, the entry point."""
    import verl.trainer.ppo.utils as utils
    from hydra import compose, initialize_config_module

    found = {}
    with initialize_config_module("verl.trainer.config", version_base=None):
        unvalidated = compose("ppo_trainer", overrides=["algorithm.adv_estimator=f_grpo"])
    entry: dict = {}
    source = "from verl.utils.device import auto_set_device\ndef main(config):\n    auto_set_device(config)\n"
    exec(compile(source, "/verl/experimental/one_step_off_policy/main_ppo.py", "exec"), entry)
    object.__setattr__(config.policy_loss, "loss_mode", "vanilla")
    for name, attempt in {
        "another entry point": lambda: entry["main"](unvalidated),
        "no validation": lambda: utils.need_reference_policy(unvalidated),
        "another loss": lambda: run_loss(loss_rows(), config, [list(range(12))]),
    }.items():
        try:
            attempt()
        except (SystemExit, ValueError, RuntimeError) as error:
            found[name] = str(error)
    return found


def main() -> None:
    config = actor_config(divergence="jensen_shannon", beta=0.3)
    splits = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10, 11]]
    loss, _, gradient = run_loss(loss_rows(), config, splits)
    answer = {
        "host": verl.__file__,
        "applied": APPLIED,
        "refused": REFUSED,
        "loss": loss,
        "gradient": gradient.tolist(),
        "hooks": [f"{hook.__module__}:{hook.__qualname__}" for hook in getattr(verl.utils.config, "CONFIG_HOOKS", [])],
        "fields": {name: fields(name) for name in POLICY_LOSSES},
        "trainer": get_trainer_cls("sync").__name__,
        "refusals": refusals(config),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
