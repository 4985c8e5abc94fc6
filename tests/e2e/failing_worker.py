"""A rollout engine that fails while weights are sent to it."""

from typing import Any

from fgrpo_plugin.host.cpu.worker import CpuWorkerExtension

GOOD = 3
"""Transfers before the one that fails: before training, after step 1 and after step 2."""


class FailingExtension(CpuWorkerExtension):
    """Chosen by `rollout.engine_kwargs.vllm.worker_extension_cls`."""

    _received = 0

    def update_weights_from_ipc(self, *args: Any, **kwargs: Any) -> None:
        if self._received == GOOD:
            raise OSError("planted: the engine cannot take these weights")
        type(self)._received += 1
        super().update_weights_from_ipc(*args, **kwargs)
