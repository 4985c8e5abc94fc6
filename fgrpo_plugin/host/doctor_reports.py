"""Is the plugin really attached to verl, here and in a Ray worker? ``fgrpo doctor`` asks in fresh processes."""

import json

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
    """Import vLLM as the host does and print its version."""
    import vllm
    from vllm import LLM  # noqa: F401

    print(PREFIX + json.dumps(vllm.__version__))
