"""verl's extension of the vLLM worker, with a weight update that vLLM's CPU layers survive."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead


class CpuWorkerExtension(vLLMColocateWorkerExtension):
    """Chosen by `rollout.engine_kwargs.vllm.worker_extension_cls`."""

    def update_weights_from_ipc(
        self, peft_config: dict[str, Any] | None = None, base_sync_done: bool = False, use_shm: bool = False
    ) -> None:
        """Receive a LoRA adapter, as verl does it, or a complete set of weights.

        vLLM repacks linear weights for the CPU after loading and drops their weight loaders, so `load_weights`, which
        verl calls, works once; `reload_weights` restores the loaders first, and wants every weight at once.
        """
        if peft_config is not None and base_sync_done:
            super().update_weights_from_ipc(peft_config, base_sync_done, use_shm)
            return
        if peft_config is not None:
            raise ValueError(
                "on the CPU platform vLLM reads the weights under a LoRA adapter itself: set "
                "actor_rollout_ref.rollout.load_format=auto, or actor_rollout_ref.model.lora.merge=true."
            )

        weights: list[tuple[str, torch.Tensor]] = []

        def keep(bucket: list[tuple[str, torch.Tensor]], is_last: bool) -> None:
            # On a CPU the bucket's tensors are views of shared memory that the receiver is about to unmap.
            weights.extend((name, tensor.clone()) for name, tensor in bucket)

        receiver = BucketedWeightReceiver(zmq_handle=self._get_zmq_handle(), device=self.device, use_shm=use_shm)
        receiver.receive_weights(on_bucket_received=keep)

        with _without_layer_warnings():
            self.model_runner.reload_weights(weights_iterator=iter(weights))
        for module in self.model_runner.get_model().modules():
            # A head tied to the embedding receives no weights of its own: the reload leaves its repacked copy stale.
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)


@contextmanager
def _without_layer_warnings() -> Iterator[None]:
    """Drop vLLM's warning for layers that have nothing to load, such as rotary embeddings and tied heads.

    `reload_weights` itself still names each parameter that received no weight.
    """
    logger = logging.getLogger("vllm.model_executor.model_loader.reload.layerwise")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
