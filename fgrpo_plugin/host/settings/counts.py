"""Settings that verl counts with, divides or multiplies by: whole numbers, each of at least its least."""

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

ACTOR, REF, ROLLOUT = (f"actor_rollout_ref.{part}" for part in ("actor", "ref", "rollout"))
LORA = ("actor_rollout_ref.model.lora_rank", "actor_rollout_ref.model.lora.rank")
NEEDED = (
    *("trainer.nnodes", "trainer.n_gpus_per_node", "trainer.total_epochs", "data.train_batch_size"),
    *("data.max_prompt_length", "data.max_response_length"),
    *(f"{ACTOR}.ppo_mini_batch_size", f"{ACTOR}.ppo_epochs", f"{ROLLOUT}.n"),
    *(f"{ROLLOUT}.{kind}_parallel_size" for kind in ("tensor_model", "data", "pipeline_model")),
)
"""At least 1."""
WHERE_SET = {
    "trainer.total_training_steps": 1,
    "trainer.critic_warmup": 0,
    "trainer.test_freq": -1,
    "trainer.save_freq": -1,
    f"{ROLLOUT}.max_model_len": 1,
    **dict.fromkeys(LORA, 0),
}
"""Setting -> its least; null where it is not set."""
MEGATRON = ("tensor_model", "pipeline_model", "context", "expert_model")
ULYSSES = ("ulysses_sequence_parallel_size", "ulysses_parallel_size")


def check_counts(config: DictConfig) -> None:
    """Refuse what is no whole number of at least its least, where verl needs one.

    Raises:
        ValueError: names the setting.
    """
    for name, least, needed in _counts(config):
        try:
            value = OmegaConf.select(config, name)
        except Exception as error:  # an interpolation that leads nowhere, a section that is none
            raise ValueError(f"{name} cannot be read ({' '.join(str(error).split()):.120}).") from None
        if value is None and not needed:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            above = "above 0" if least == 1 else f"of at least {least}"
            raise ValueError(f"{name}={value} must be a whole number {above}{'' if needed else ', or null'}.")


def _counts(config: DictConfig) -> Iterator[tuple[str, int, bool]]:
    """Setting, least, and whether it must be set."""
    yield from ((name, 1, True) for name in NEEDED)
    yield from ((name, least, False) for name, least in WHERE_SET.items())
    for part in (ACTOR, REF):
        strategy = OmegaConf.select(config, f"{part}.strategy")
        if strategy == "megatron":
            yield from ((f"{part}.megatron.{kind}_parallel_size", 1, True) for kind in MEGATRON)
            for kind in ("virtual_pipeline_model", "expert_tensor"):
                yield f"{part}.megatron.{kind}_parallel_size", 1, False
        engine = "veomni" if strategy == "veomni" else "fsdp_config"
        yield from ((f"{at}.{name}", 1, False) for at in (part, f"{part}.{engine}") for name in ULYSSES)
    mode = OmegaConf.select(config, "trainer.v1.trainer_mode")
    yield f"trainer.v1.{mode}.parameter_sync_step", 1, mode == "separate_async"
    if mode == "separate_async":
        yield from ((f"{ROLLOUT}.{name}", 1, True) for name in ("nnodes", "n_gpus_per_node"))
