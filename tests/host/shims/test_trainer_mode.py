"""Which class a trainer is, and the sources of verl that ours is written around."""

import pytest
from omegaconf import OmegaConf
from verl.trainer.ppo.v1 import PPOTrainerSync, get_trainer_cls

from fgrpo_plugin.host import shims
from fgrpo_plugin.host.contract import USED_SOURCES
from fgrpo_plugin.host.driver.offline import OfflineTrainer
from fgrpo_plugin.host.driver.trainer import FDivergenceTrainer
from fgrpo_plugin.host.shims.trainer_mode import extend
from fgrpo_plugin.pinned import VERL


def config(estimator, validated=True, lam=None):
    section = {} if lam is None else {"f_divergence": {"lam": lam}}
    return OmegaConf.create(
        {
            "algorithm": {"adv_estimator": estimator, "f_divergence_validated": validated},
            "actor_rollout_ref": {"actor": {"policy_loss": section}},
        }
    )


def test_the_stock_trainer_is_what_other_algorithms_get():
    for mode in ("sync", "colocate_async", "separate_async"):
        assert issubclass(get_trainer_cls(mode), FDivergenceTrainer)
    made = []

    class Stock(PPOTrainerSync):
        def __init__(self, config):
            made.append(type(self))

    ours = extend(Stock)
    ours(config("grpo"))
    ours(config("f_grpo"))
    ours(config("f_hal", lam=0.5))
    ours(config("f_hal", lam=1))
    users = type("Users", (ours,), {})
    users(config("grpo"))
    users(config("f_hal", lam=1))
    assert [*made[:3], *made[4:]] == [Stock, ours, ours, users, users]
    assert issubclass(made[3], OfflineTrainer) and issubclass(made[3], ours)
    for cls in (ours, users):
        with pytest.raises(ValueError, match="without validation"):
            cls(config("f_grpo", validated=False))


def test_every_source_that_the_driver_relies_on_is_looked_at(monkeypatch):
    shims.require_used()
    for name in USED_SOURCES:
        monkeypatch.setattr(shims, "USED_SOURCES", USED_SOURCES | {name: {"0" * 64: "another verl"}})
        with pytest.raises(
            RuntimeError, match=f"^{name.replace(':', '.')} of the installed verl .*install verl=={VERL}"
        ):
            shims.require_used()


def test_what_the_driver_overrides_in_verl_is_in_the_table():
    """Methods of ours that verl's trainers have too."""
    known = {name.rsplit(".", 1)[1] for name in USED_SOURCES}
    for ours in (FDivergenceTrainer, OfflineTrainer):
        overridden = {name for name in vars(ours) if callable(vars(ours)[name]) and hasattr(PPOTrainerSync, name)}
        overridden = {name for name in overridden if not name.startswith("__")}
        assert overridden <= known, overridden - known
