"""vLLM looks at the model's class in the process that asks, which has imported nearly all that the class needs."""

from types import ModuleType
from typing import Any

import wrapt

IN_ANOTHER_PROCESS = "_run_in_subprocess"


def register(module: ModuleType) -> None:
    """Spare `module`, ``vllm.model_executor.models.registry``, a process that imports vLLM once more.

    It is there so that CUDA is not initialised. A vLLM without it is left as it is.
    """

    def here(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        (look,) = args
        return look()

    if hasattr(module, IN_ANOTHER_PROCESS):
        wrapt.wrap_function_wrapper(module, IN_ANOTHER_PROCESS, here)
