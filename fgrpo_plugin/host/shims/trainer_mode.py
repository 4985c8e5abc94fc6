"""Puts our subclass behind each of verl's v1 trainer modes. Patch: 0004-extend-trainer-mode.patch in patches/.

``register_trainer`` refuses a name that is taken, and a new name would silently get the asynchronous replay buffer. The
subclass relies on where the host trains each row, which is checked here.
"""

import inspect
from types import ModuleType
from typing import Any

from fgrpo_plugin.host.shims import known_source

UPDATE_ACTOR = {"d7009bd8a69d40b9e96c13bda5226cc0ab2c18db706606ea88e787b0ccdc3d83": "verl 0.9.1"}
TRAIN_MINI_BATCH = {"02b50b03fe7d8d29596ccbd41e5d3907d80a566666dc0106fbf54fc886d6601a": "verl 0.9.1"}


def apply(v1: ModuleType) -> bool:
    """Extend the trainers of ``verl.trainer.ppo.v1``; False where the host lets a plugin do so."""
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, PPOTrainer, register_trainer
    from verl.workers.engine_workers import TrainingWorker

    from fgrpo_plugin.host.driver.offline import OfflineTrainer
    from fgrpo_plugin.host.driver.trainer import FDivergenceTrainer

    remedy = "install verl==0.9.1; f-GRPO has to know in which mini-batch the host trains each row"
    update = "verl.trainer.ppo.v1.trainer_base.PPOTrainer._update_actor"
    known_source(PPOTrainer._update_actor, hashes=UPDATE_ACTOR, what=update, remedy=remedy)
    train = "verl.workers.engine_workers.TrainingWorker.train_mini_batch"
    known_source(TrainingWorker.train_mini_batch, hashes=TRAIN_MINI_BATCH, what=train, remedy=remedy)

    host_can = "override" in inspect.signature(register_trainer).parameters
    for name, stock in list(TRAINER_REGISTRY.items()):
        if issubclass(stock, FDivergenceTrainer):
            continue
        extended: Any = type(f"FDivergence{stock.__name__}", (FDivergenceTrainer, stock), {"stock": stock})
        extended.offline = type(f"Offline{stock.__name__}", (OfflineTrainer, extended), {})
        if host_can:
            register_trainer(name, override=True)(extended)
        else:
            TRAINER_REGISTRY[name] = extended
    return not host_can
