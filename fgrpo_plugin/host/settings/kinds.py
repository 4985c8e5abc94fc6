"""Which kind of value a setting has: a section, text, a list of it, true or false. Hydra takes any for any.

What is said here the checks need not ask again: a number in the place of a section would end them with an error of
Python's, and a word such as ``no`` counts as true.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

_A, _M, _R = "actor_rollout_ref.actor", "actor_rollout_ref.model", "actor_rollout_ref.rollout"
_ENGINES = ("fsdp_config", "megatron", "veomni")
_RAY = "ray_kwargs.ray_init"
SECTIONS: tuple[str, ...] = (
    "algorithm",
    "data",
    "trainer",
    "trainer.v1",
    "actor_rollout_ref",
    _A,
    f"{_A}.policy_loss",
    f"{_A}.optim",
)
SECTIONS += ("actor_rollout_ref.ref", _M, _R, f"{_R}.checkpoint_engine", "algorithm.rollout_correction")
"""Always there."""
WHERE_SET: dict[str, tuple[str, ...]] = {
    "a section": (
        *("algorithm.filter_groups", "critic", "distillation", f"{_A}.checkpoint", f"{_M}.lora"),
        *(f"actor_rollout_ref.{part}.{engine}" for part in ("actor", "ref") for engine in _ENGINES),
        *(f"actor_rollout_ref.{part}.megatron.override_transformer_config" for part in ("actor", "ref")),
        *(f"{_A}.{engine}.router_replay" for engine in _ENGINES),
        *(f"{_A}.fsdp_config.mixed_precision", "actor_rollout_ref.ref.fsdp_config.mixed_precision"),
        *(f"{_M}.override_config", f"{_R}.agent", f"{_R}.multi_turn", "data.apply_chat_template_kwargs"),
        *("data.custom_cls", "reward", "reward.reward_manager", "reward.reward_manager.module", "reward.reward_model"),
        *("reward.custom_reward_function", "reward.custom_reward_function.reward_kwargs", "ray_kwargs", _RAY),
        *(f"{_RAY}.runtime_env", f"{_RAY}.runtime_env.env_vars", "custom_reward_function"),
        *(f"trainer.v1.{mode}" for mode in ("sync", "colocate_async", "separate_async")),
        *("trainer.v1.sampler", "trainer.v1.sampler.custom_sampler"),
    ),
    "text": (
        *("algorithm.adv_estimator", "model_engine", "trainer.v1.trainer_mode", "trainer.default_local_dir"),
        *("trainer.resume_mode", "trainer.resume_from_path", "trainer.device", f"{_A}.strategy", f"{_R}.name"),
        *("actor_rollout_ref.ref.strategy", f"{_A}.policy_loss.loss_mode", "algorithm.filter_groups.metric"),
        *(f"{_M}.{name}" for name in ("path", "tokenizer_path", "hf_config_path", "custom_chat_template")),
        *(f"{_M}.lora_adapter_path", "data.prompt_key", "data.custom_cls.path", "data.custom_cls.name"),
        *("data.image_key", "data.video_key", "data.audio_key", f"{_R}.checkpoint_engine.backend"),
        *(f"{_R}.agent.{name}" for name in ("agent_loop_config_path", "agent_loop_manager_class")),
        *(f"{_R}.agent.default_agent_loop", f"{_R}.multi_turn.tool_config_path"),
        *("reward.reward_manager.name", "reward.reward_manager.source", "reward.reward_manager.module.path"),
        *("reward.custom_reward_function.path", "reward.custom_reward_function.name"),
        *("custom_reward_function.path", f"{_RAY}.address", f"{_M}.external_lib"),
    ),
    "text, or a list of text": ("data.train_files", "data.val_files", "trainer.logger"),
    "true or false": (
        *(f"{_A}.{name}" for name in ("use_dynamic_bsz", "use_kl_loss", "calculate_entropy", "shuffle")),
        *(f"{_A}.use_prefix_grouper", f"{_A}.checkpoint.async_save", "actor_rollout_ref.hybrid_engine"),
        *("actor_rollout_ref.ref.log_prob_use_dynamic_bsz", f"{_R}.log_prob_use_dynamic_bsz", f"{_M}.lora.merge"),
        *(f"{_M}.use_remove_padding", f"{_M}.trust_remote_code", "data.shuffle", "data.filter_overlong_prompts"),
        *("algorithm.use_kl_in_reward", "algorithm.filter_groups.enable", "algorithm.norm_adv_by_std_in_grpo"),
        *("trainer.use_v1", "trainer.val_before_train", "trainer.val_only", "critic.enable", "distillation.enabled"),
        *("reward.reward_model.enable", "reward.reward_model.enable_resource_pool"),
    ),
    "a number": (
        *(
            "data.train_max_samples",
            "data.val_max_samples",
            f"{_A}.entropy_coeff",
            "reward.reward_model.n_gpus_per_node",
        ),
        *(f"{_A}.optim.lr", f"{_R}.temperature"),
    ),
}
"""Kind -> settings; null where they are not set."""


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


_IS: dict[str, Callable[[Any], bool]] = {
    "a section": lambda value: isinstance(value, DictConfig),
    "text": _is_text,
    "text, or a list of text": lambda value: (
        _is_text(value) or (isinstance(value, ListConfig) and all(_is_text(one) for one in value))
    ),
    "true or false": lambda value: isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)),
    "a number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
}


def check_kinds(config: DictConfig) -> None:
    """Refuse a value of another kind than the setting has.

    Args:
        config: verl's whole configuration.

    Raises:
        ValueError: names the setting.
    """
    for name in SECTIONS:
        if not isinstance(found := OmegaConf.select(config, name), DictConfig):
            raise ValueError(f"{name}={_shown(found)} must be a section; set what is in it: {name}.<setting>=<value>.")
    for kind, names in WHERE_SET.items():
        for name in names:
            found = OmegaConf.select(config, name)
            if found is not None and not _IS[kind](found):
                raise ValueError(f"{name}={_shown(found)} must be {kind}, or null.")
    variables = OmegaConf.select(config, f"{_RAY}.runtime_env.env_vars") or {}
    for variable, value in variables.items():
        if not isinstance(variable, str) or not variable or "=" in variable or "\0" in f"{variable}{value}":
            raise ValueError(f"{_RAY}.runtime_env.env_vars: {variable!r:.80} cannot be a variable; correct its name.")


@contextlib.contextmanager
def naming_what_cannot_be_read() -> Iterator[None]:
    """Turn an error of OmegaConf's into one sentence that names the setting.

    Raises:
        ValueError: a ``${...}`` leads nowhere, or a value that is needed is missing.
    """
    try:
        yield
    except MissingMandatoryValue as error:
        raise ValueError(f"{error.full_key or error.key}=??? has no value yet; set it.") from None
    except OmegaConfBaseException as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{error.full_key or error.key or 'a setting'} cannot be read ({reason:.200}); correct the ${{...}} in it, "
            "or write the value itself."
        ) from None


def _shown(value: Any) -> str:
    return f"{' '.join(repr(value).split()):.200}"
