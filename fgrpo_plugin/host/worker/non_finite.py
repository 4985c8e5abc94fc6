"""Ends an update whose loss or gradient is not finite, before the optimiser's step, with what reproduces it.

What the loss gets is remembered for the length of one mini-batch: about 21 bytes a response token, on its device. The
error takes the rows along to the driver, which writes the file (driver/run_endings.py).
"""

import inspect
import math
import os
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from functools import wraps
from types import ModuleType
from typing import Any

import torch

from fgrpo_plugin.host.contract import F_GRPO, F_HAL
from fgrpo_plugin.host.replay_rows import MEGATRONS_CHECK, NonFiniteUpdate, gather
from fgrpo_plugin.losses.checks import NotFinite

_TENSORS = ("log_prob", "old_log_prob", "ref_log_prob")


@dataclass
class _MiniBatch:
    """What the loss has got of a mini-batch so far, on this rank."""

    parts: list[dict[str, torch.Tensor]] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    given: Any = None
    """The micro-batch as verl's engine gives it."""


_current: ContextVar[_MiniBatch | None] = ContextVar("current", default=None)


def remembered(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Our policy loss, which ends the update where it or its slopes are not finite.

    Raises:
        NonFiniteUpdate: with the rows of the mini-batch's micro-batches up to this one.
    """
    parameters = inspect.signature(loss)

    @wraps(loss)
    def checked(*args: Any, **kwargs: Any) -> Any:
        given = parameters.bind(*args, **kwargs).arguments
        mini_batch = _current.get() or _MiniBatch()  # a loss by itself is one of one micro-batch
        _remember(mini_batch, given | given.pop("kwargs", {}))
        try:
            found, metrics = loss(*args, **kwargs)
        except NotFinite as error:
            raise _failed(mini_batch, "loss", f"the loss of a mini-batch cannot be computed: {error}") from error
        # These sums are on the host already; the loss itself would be another wait for the device.
        if not all(math.isfinite(value) for name, value in metrics.items() if name.endswith(("loss", "slope"))):
            raise _failed(mini_batch, "loss", "the loss of a mini-batch, or its slope to an r, is not finite.")
        return found, metrics

    return checked


def _remember(mini_batch: _MiniBatch, given: Mapping[str, Any]) -> None:
    config = given["config"]
    rows = {name: given[name].detach() for name in _TENSORS} | {"response_mask": given["response_mask"].bool()}
    rows |= {name: value.detach() for name, value in given.items() if name.startswith("f_divergence_")}
    if mini_batch.given is not None and "responses" in mini_batch.given.keys():  # noqa: SIM118  (of a TensorDict)
        rows["responses"] = mini_batch.given["responses"]
    mini_batch.parts.append(rows)
    mini_batch.about = {
        "loss": F_HAL if "f_divergence_side" in rows else F_GRPO,
        "settings": asdict(config.policy_loss.f_divergence),
        "dp_size": config.global_batch_info["dp_size"],
        "rank": int(os.environ.get("RANK", 0)),
    }


def _failed(mini_batch: _MiniBatch, kind: str, said: str) -> NonFiniteUpdate:
    parts = []
    for rows in map(dict, mini_batch.parts):
        if "responses" in rows:
            given = rows["responses"]
            padded = given.to_padded_tensor(0) if given.is_nested else given
            width = rows["response_mask"].shape[1]
            rows["responses"] = torch.nn.functional.pad(padded, (0, width - padded.shape[1]))
        parts.append(rows)
    return NonFiniteUpdate(said, gather(parts), {"kind": kind, **mini_batch.about, "said": said})


def watch_gradients(base: ModuleType) -> None:
    """Make ``train_batch`` of ``verl.workers.engine.base`` end where the gradient's norm is not finite.

    verl's engines but Megatron skip such a step, print a line and go on; after it nothing has been applied. Megatron
    makes it, so that settings/switch.py has Megatron check before. Other losses than ours are left alone.
    """
    stock = base.BaseEngine.train_batch

    @wraps(stock)
    def train_batch(self: Any, data: Any, loss_function: Callable[..., Any]) -> Any:
        mini_batch = _MiniBatch()

        def loss(*args: Any, **kwargs: Any) -> Any:
            mini_batch.given = kwargs.get("data")
            return loss_function(*args, **kwargs)

        token = _current.set(mini_batch)
        try:
            outputs = stock(self, data, loss)
        except RuntimeError as error:
            if mini_batch.parts and MEGATRONS_CHECK in str(error):
                raise _failed(
                    mini_batch, "gradient", f"the gradient of a mini-batch is not finite ({error})."
                ) from error
            raise
        finally:
            _current.reset(token)
        norm = outputs["metrics"].get("grad_norm") if mini_batch.parts else None
        # With float16 a norm that overflows is how the scale is found, and the scaler skips the step.
        if norm is not None and getattr(self, "scaler", None) is None and not math.isfinite(float(norm)):
            said = f"the gradient of a mini-batch is not finite (its norm is {float(norm)})."
            raise _failed(mini_batch, "gradient", said)
        return outputs

    base.BaseEngine.train_batch = train_batch
