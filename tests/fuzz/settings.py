"""Throw made settings at the validation: it completes them, or refuses them with one sentence that names a setting.

    pip install -r requirements/fuzz.txt
    python -m tests.fuzz.settings tests/fuzz/seeds_settings -max_total_time=600

Each input is bytes: JSON of a base and what is set beside it, as the seeds have it, or choices of both. Settings are
set as Hydra sets them; what it refuses to set is its own. What the validation has accepted, the driver and the losses
have to take. Inputs that once failed are kept among the seeds; tests/fuzz/test_settings.py runs them all.
"""

import contextlib
import functools
import io
import json
import math
import pickle
import re
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from fgrpo_plugin.config import FDivergenceConfig, LambdaSchedule
from fgrpo_plugin.host.contract import LOSS
from fgrpo_plugin.preference.config import PreferenceConfig
from tests.fuzz.preference_reader import Choices

ROOT = Path(__file__).parents[2]
F, PREFERENCE = f"{LOSS}.f_divergence", "data.preference"
HAL, ACTOR = "algorithm.adv_estimator=f_hal", "actor_rollout_ref.actor"
BASES = {
    "f_grpo": ["algorithm.adv_estimator=f_grpo"],
    "f_hal": [HAL],
    "static": [
        HAL,
        f"{ACTOR}.use_dynamic_bsz=false",
        f"{ACTOR}.ppo_micro_batch_size_per_gpu=2",
        *(f"actor_rollout_ref.{part}.log_prob_micro_batch_size_per_gpu=2" for part in ("ref", "rollout")),
    ],
    "offline": [HAL, f"+{F}.lam=1", "trainer.val_before_train=false", "trainer.test_freq=-1"],
    "separate": [
        "algorithm.adv_estimator=f_grpo",
        "trainer.v1.trainer_mode=separate_async",
        "trainer.v1.separate_async.parameter_sync_step=1",
        "actor_rollout_ref.rollout.nnodes=1",
        "actor_rollout_ref.rollout.n_gpus_per_node=1",
        "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl",
    ],
    "megatron": ["model_engine=megatron", "algorithm.adv_estimator=f_grpo"],
}
OWN = (
    *(f"{F}.{field.name}" for field in fields(FDivergenceConfig)),
    *(f"{F}.lam.{field.name}" for field in fields(LambdaSchedule)),
    *(f"{PREFERENCE}.{field.name}" for field in fields(PreferenceConfig)),
)
_SECTIONS = "trainer|data|algorithm|actor_rollout_ref|reward|critic|distillation|ray_kwargs|custom_reward_function"
_NAMED = re.compile(rf"\b(?:{_SECTIONS})\.[a-z0-9_.]*\w")
NUMBERS = (0, 1, 2, 3, 4, 8, -1, -2, 0.5, 0.1, 1.0, 1e-3, 2.5, 10**9, 10**30, -(10**30), 1e38, 1e300, 1e-300, 5e-324)
NUMBERS += (math.nan, math.inf, -math.inf, -0.5, 64, 256, 1024, 2**31, 2**63)
TEXTS = ("", " ", "a", "1", "0.5", "true", "null", "???", "\u00e9\u4e2d\u2028", "\ud800", "\x00", "x" * 3000, "a\nb")
TEXTS += ("f_grpo", "f_hal", "grpo", "sync", "colocate_async", "separate_async", "fsdp", "fsdp2", "megatron", "vllm")
TEXTS += ("pearson", "kl", "alpha", "js", "paper", "released", "stable", "unit", "group", "side", "token", "sequence")
TEXTS += ("linear", "cosine", "step", "softmax", "none", "console", "wandb", "os.path", "pkg://os", "error", "skip")
LINKS = ("${nowhere}", "${data.nowhere}", "${data.train_batch_size}", "${trainer}", "${oc.env:NOWHERE_AT_ALL}")
LINKS += ("${oc.env:NOWHERE_AT_ALL,8}", "${unknown:1}", "${", "${}", "${data.preference}", "${.x}", "${oc.decode:'['}")


def usual(key: str, choices: Choices) -> Any:
    """A value as the setting may have it, by its last name."""
    schedule = {"schedule": choices.of(("linear", "cosine", "step")), "start": 0.8, "end": 0.2}
    steps = {"schedule": "step", "values": [[1, 0.8], [choices.of((2, 10, 1)), 0.5]]}
    known: dict[str, Any] = {
        "lam": (0.5, 0, 1, 0.25, 1.0, 0.0, schedule, steps, schedule | {"steps": 10}),
        "scale": ("unit", "paper", [1.0, 2.0], [1e-30, 1e-30], [1e30, 1e30], [5e-324, 1.0]),
        "alpha": (0.5, 2.0, -1.0, 0.0, 1.0, 3.0, 100.0),
        "divergence": ("pearson", "kl", "reverse_kl", "jensen_shannon", "hellinger", "total_variation", "alpha"),
        "columns": ({"prompt": "prompt"}, {"prompt": ["prompt", "chosen"]}, {}),
        "env_vars": ({"A": "1"}, {"A=B": "1"}, {"A": None}, {"": "1"}, {"A": "\x00"}),
    }
    last = key.rpartition(".")[2]
    return choices.of(known.get(last, (True, False, 1, 2, 4, 8, 0, -1, 0.5, None)))


def value(choices: Choices, depth: int = 0) -> Any:
    """A number, text, link, list or mapping."""
    kind = choices.below(9 if depth < 3 else 5)
    if kind < 2:
        return choices.of(NUMBERS)
    if kind == 2:
        return choices.of((None, True, False))
    if kind == 3:
        return choices.of(TEXTS)
    if kind == 4:
        return choices.of(LINKS)
    if kind < 7:
        return [value(choices, depth + 1) for _ in range(choices.below(4))]
    names = ("a", "x", "schedule", "start", "prompt", "rank", "name", 1, "enable", "path")
    return {choices.of(names): value(choices, depth + 1) for _ in range(choices.below(4))}


@functools.cache
def named() -> tuple[str, ...]:
    """Settings and sections that the validation's own source names, and those below and above them."""
    found: set[str] = set()
    for file in sorted((ROOT / "fgrpo_plugin" / "host" / "settings").glob("*.py")):
        found |= set(_NAMED.findall(file.read_text()))
    composed, _ = _inputs()
    leaves = {name for base in composed for name in _leaves(pickle.loads(composed[base]))}
    last = {name.rpartition(".")[2] for name in found} | set(re.findall(r'"([a-z0-9_]+)"', _source()))
    found |= {name for name in leaves if name.rpartition(".")[2] in last}
    sections = {".".join(name.split(".")[:depth]) for name in found for depth in range(1, name.count(".") + 1)}
    return tuple(sorted(found | sections))


def _source() -> str:
    return "".join(file.read_text() for file in sorted((ROOT / "fgrpo_plugin" / "host" / "settings").glob("*.py")))


def _leaves(config: Any, at: str = "") -> list[str]:
    from omegaconf import OmegaConf

    items: Any = OmegaConf.to_container(config) if OmegaConf.is_config(config) else config
    return [
        name
        for key, inner in items.items()
        for name in (_leaves(inner, f"{at}{key}.") if isinstance(inner, dict) and inner else [f"{at}{key}"])
    ]


def settings_of(data: bytes) -> tuple[str, dict[str, Any]]:
    """The base and the settings that an input stands for."""
    if data[:1] == b"{":
        try:
            given = json.loads(data)
            return str(given["base"]), dict(given["settings"])
        except (ValueError, KeyError, TypeError, RecursionError):
            pass  # a mutation of a seed that is no JSON any more: choices like any other bytes
    choices = Choices(data)
    base, found = choices.of(tuple(BASES)), {}
    for _ in range(1 + choices.below(4)):
        if choices.below(2):
            key = choices.of(OWN)
        else:
            key = named()[(choices.below(256) * 256 + choices.below(256)) % len(named())]
        found[key] = usual(key, choices) if choices.below(2) else value(choices)
    return base, found


@functools.cache
def _inputs() -> tuple[dict[str, bytes], Path]:
    """Each base composed, pickled, and the folder of the files that they name."""
    import pandas as pd

    from fgrpo_plugin.host.settings.compose import compose
    from fgrpo_plugin.quickstart.model import build_tokenizer

    folder = Path(tempfile.mkdtemp())
    row = {"prompt": [{"role": "user", "content": "1+1="}], "data_source": "openai/gsm8k"}
    pd.DataFrame([row | {"reward_model": {"style": "rule", "ground_truth": "2"}}] * 16).to_parquet(folder / "p.parquet")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    build_tokenizer().save_pretrained(folder / "model")
    pairs = [{"prompt": str(i), "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(64)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    common = [
        f"data.train_files={folder / 'p.parquet'}",
        f"data.val_files={folder / 'p.parquet'}",
        f"actor_rollout_ref.model.path={folder / 'model'}",
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
        f"{ACTOR}.use_dynamic_bsz=true",
        f"{ACTOR}.ppo_mini_batch_size=8",
        "data.train_batch_size=8",
        "trainer.n_gpus_per_node=1",
        "trainer.logger=[console]",
    ]
    preference = [f"+{PREFERENCE}.files=[{folder / 'pairs.jsonl'}]", f"+{PREFERENCE}.cache_dir={folder / 'cache'}"]
    return {
        name: pickle.dumps(compose([*common, *base, *(preference if HAL in base else [])]))
        for name, base in BASES.items()
    }, folder


def run(data: bytes) -> bool:
    """Complete one configuration, and hold what came of it to what it has to be; whether it was accepted.

    Raises:
        AssertionError: a refusal that is no sentence naming a setting.
        Exception: whatever the validation raised that is none, or what the driver or a loss makes of what it accepted.
    """
    from omegaconf import OmegaConf

    from fgrpo_plugin.host.shims.config_hook import complete_or_exit

    base, given = settings_of(data)
    composed, folder = _inputs()
    config: Any = pickle.loads(composed.get(base, composed["f_grpo"]))
    try:
        _set(config, given)
    except Exception:  # what cannot be set at all is Hydra's to say
        return False
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        try:
            complete_or_exit(config)
        except SystemExit as end:
            sentence = str(end.code)
            assert sentence.startswith("fgrpo-plugin: ") and "\n" not in sentence, repr(sentence)[:1000]
            assert 20 < len(sentence) < 4000 and _names_a_setting(sentence), sentence[:1000]
            return False
        if OmegaConf.select(config, "algorithm.f_divergence_validated"):
            use(config)
    return True


def _set(config: Any, given: dict[str, Any]) -> None:
    from omegaconf import OmegaConf

    for key, one in given.items():
        OmegaConf.update(config, key, one, merge=True, force_add=True)


def _names_a_setting(sentence: str) -> bool:
    known = _NAMED.search(sentence) or re.search(rf"\b({_SECTIONS}|model_engine)(=| cannot be read)", sentence)
    return bool(known) or sentence.startswith("fgrpo-plugin: verl refuses this configuration: ")


def use(config: Any) -> None:
    """What the driver and a worker read of a completed configuration, and an update's loss on four rows.

    Raises:
        AssertionError: a loss or a gradient that is not finite.
    """
    from verl.utils.config import omega_conf_to_dataclass

    from fgrpo_plugin.host.driver.log_probs import log_prob_multiple
    from fgrpo_plugin.host.driver.rows import on_policy_fields, row_numbers
    from fgrpo_plugin.host.driver.run_length import unreached
    from fgrpo_plugin.host.settings.batches import minibatches_of_update
    from fgrpo_plugin.host.settings.layout import data_parallel_size
    from fgrpo_plugin.host.settings.reading import joins_preferences, may_be_stale, read_settings
    from fgrpo_plugin.host.settings.record import run_record
    from fgrpo_plugin.host.worker.policy_loss import POLICY_LOSSES

    section = omega_conf_to_dataclass(config.actor_rollout_ref.actor.policy_loss)
    settings = section.f_divergence
    assert settings == read_settings(config.actor_rollout_ref.actor.policy_loss.f_divergence)
    assert minibatches_of_update(config) >= 1 <= data_parallel_size(config) and log_prob_multiple(config) >= 1
    may_be_stale(config)
    json.dumps(run_record(config, 1, 3))
    list(unreached(2, config.trainer.total_epochs, 3, settings))
    if joins_preferences(config):
        from fgrpo_plugin.host.settings.preferences import preference_rows_per_minibatch

        assert preference_rows_per_minibatch(config) % 2 == 0
    lams = [settings.lam_at(step, 3) for step in (1, 2, 3)]
    assert all(0 <= lam <= 1 for lam in lams)
    mask = torch.ones(4, 3)
    reference = torch.full((4, 3), -1.0)
    log_prob = (reference + torch.tensor([0.0, 0.01, -0.01, 0.02])[:, None]).requires_grad_()
    numbers, _ = row_numbers(
        rewards=torch.tensor([0.0, 1.0, 0.5, 0.25]),
        uids=np.array(["a"] * 4, dtype=object),
        response_mask=mask,
        old_log_prob=reference if settings.weighting == "softmax_is" else None,
        minibatch=torch.zeros(4, dtype=torch.long),
        padding=torch.zeros(4, dtype=torch.bool),
        settings=settings,
        normalize_by_std=bool(config.algorithm.get("norm_adv_by_std_in_grpo", True)),
    )
    if section.loss_mode == "f_hal":
        numbers |= on_policy_fields(4, lams[0])
    actor = SimpleNamespace(policy_loss=section, global_batch_info={"dp_size": 1})
    loss, sums = POLICY_LOSSES[section.loss_mode](
        reference, log_prob, torch.zeros(4, 3), mask, config=actor, ref_log_prob=reference, **numbers
    )
    loss.backward()
    assert math.isfinite(float(loss)) and bool(torch.isfinite(log_prob.grad).all()), (float(loss), settings)
    assert all(map(math.isfinite, sums.values())), sums


def main() -> None:
    """Fuzz until atheris is told to stop; what fails is printed as a seed."""
    import importlib

    import atheris

    from tests.fuzz.preference_reader import functions_of

    for base in BASES:  # what is imported on the way is no part of an input's time
        run(json.dumps({"base": base, "settings": {}}).encode())
    names = ("batches", "counts", "f_divergence", "inputs", "layout", "preferences", "reading", "refusals")
    names += (
        "rewards",
        "switch",
        "tracking",
        "trainer_mode",
        "verls_own",
        "workers",
        "prompts",
        "agent_loops",
        "tools",
    )
    modules = [importlib.import_module(f"fgrpo_plugin.host.settings.{name}") for name in names]
    for function in functions_of(*modules):
        atheris.instrument_func(function)

    def one(data: bytes) -> None:
        try:
            run(data)
        except Exception:
            base, given = settings_of(data)
            print(json.dumps({"base": base, "settings": given}), file=sys.stderr, flush=True)
            raise

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
