"""Lets a registered policy loss ask for further batch fields. Patch: 0001-policy-loss-batch-fields.patch in patches/.

``ppo_loss`` hands a registered loss a fixed list of tensors. A loss with an attribute ``batch_fields`` gets those
fields of the micro-batch as well, as keyword arguments. The patched verl takes the names from the loss's signature, as
verl's pull request 7473 does for advantage estimators; for our losses they are the same.
"""

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any

from fgrpo_plugin.host.shims import require_replaced

_micro_batch: ContextVar[Any] = ContextVar("micro_batch")


def apply(losses: Any) -> bool:
    """Adapt ``verl.workers.utils.losses``; False where verl passes such fields (the loss is checked there too)."""
    host_can = hasattr(losses, "policy_loss_batch_fields")
    if not host_can:
        require_replaced(losses.ppo_loss, "verl.workers.utils.losses:ppo_loss", "0001-policy-loss-batch-fields.patch")
        losses.ppo_loss = _remembering_micro_batch(losses.ppo_loss)
        losses.get_policy_loss_fn = _binding_fields(losses.get_policy_loss_fn)
    losses.ppo_loss = _refusing_other_losses(losses.ppo_loss)
    return not host_can


def _refusing_other_losses(ppo_loss: Callable) -> Callable:
    @wraps(ppo_loss)
    def checked(config, *args, **kwargs):
        _refuse_other_loss(config)
        return ppo_loss(config, *args, **kwargs)

    return checked


def _remembering_micro_batch(stock: Callable) -> Callable:
    @wraps(stock)
    def ppo_loss(config, model_output, data, dp_group=None):
        token = _micro_batch.set(data)
        try:
            return stock(config=config, model_output=model_output, data=data, dp_group=dp_group)
        finally:
            _micro_batch.reset(token)

    return ppo_loss


def _binding_fields(stock: Callable) -> Callable:
    @wraps(stock)
    def get_policy_loss_fn(name):
        return _bind(stock(name))

    return get_policy_loss_fn


def _bind(loss: Callable) -> Callable:
    names = getattr(loss, "batch_fields", ())
    if not names:
        return loss
    data = _micro_batch.get()
    missing = [name for name in names if name not in data]
    if missing:
        raise KeyError(f"the policy loss {loss.__name__} needs the batch fields {missing}, which this batch lacks.")
    fields = data.select(*names).to_padded_tensor()
    return partial(loss, **{name: fields[name] for name in names})


def _refuse_other_loss(config: Any) -> None:
    """The worker's own check that a run configured for f-GRPO really minimises it."""
    if getattr(config.policy_loss, "f_divergence", None) is None:
        return
    from verl.trainer.ppo.core_algos import get_policy_loss_fn

    from fgrpo_plugin.host.worker.policy_loss import POLICY_LOSSES

    running = get_policy_loss_fn(config.policy_loss.loss_mode)
    if running is not POLICY_LOSSES.get(config.policy_loss.loss_mode):
        raise RuntimeError(
            f"loss_mode={config.policy_loss.loss_mode!r} runs {running.__module__}.{running.__qualname__} in place of "
            "our loss; remove what registered or selected it."
        )
