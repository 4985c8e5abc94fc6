"""Preference data on the driver: drawn once a step, with reference log-probs; state goes with verl's checkpoints."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fgrpo_plugin.host.driver.joining import deal
from fgrpo_plugin.host.settings.layout import reference_is_in_actor
from fgrpo_plugin.host.settings.preferences import (
    load_preference_rows,
    preference_rows_per_minibatch,
    preference_settings,
)
from fgrpo_plugin.preference.config import PreferenceConfig
from fgrpo_plugin.preference.reference_cache import DEFAULT_FOLDER, ReferenceCache, reference_fingerprint
from fgrpo_plugin.preference.sampler import PreferenceSampler
from fgrpo_plugin.preference.token_rows import TokenRow, TokenRows

STATE_FILE = "f_divergence.json"
RECHECKED_ROWS = 8
# Largest and mean difference, nats a token; low precision depends on what else is in a batch.
RECHECK_TOLERANCE = {"float32": (1e-3, 1e-3), "other": (0.3, 0.05)}

LogProbs = Callable[[Sequence[TokenRow]], list[torch.Tensor]]


class PreferenceSource:
    """Preference data as the trainer uses them: drawn, with reference log-probs, in the host's form.

    Args:
        config: the host's whole configuration, validated.
        tokenizer: the host's.
    """

    def __init__(self, config: Any, tokenizer: Any):
        self.settings: PreferenceConfig = preference_settings(config)
        self._config = config
        self._tokenizer = tokenizer
        self.rows = self._load(held_out=False)
        self.held_out: Sequence[TokenRow] = self._load(held_out=True) if self.settings.val_files else []
        self.sampler = PreferenceSampler(self.rows, seed=self.settings.seed, keep_pairs=self.settings.keep_pairs)
        self.batch_size = preference_rows_per_minibatch(config)
        if self.batch_size > len(self.sampler):
            self.sampler.draw(self.batch_size)  # says what is wrong
        model, self._folder = config.actor_rollout_ref.model.path, Path(self.settings.cache_dir or DEFAULT_FOLDER)
        self._key = cache_key(config, reference_fingerprint(model, self._folder))  # now, since it may be refused
        self._cache: ReferenceCache | None = None
        self._rechecked = False

    def draw(self, minibatches: int, dp_size: int) -> list[list[list[TokenRow]]]:
        """The next rows: for each mini-batch, for each rank, as many D+ as D- rows.

        Args:
            minibatches: optimiser steps of this update.
            dp_size: data-parallel ranks.
        """
        return [
            deal([self.rows[index] for index in self.sampler.draw(self.batch_size)], dp_size)
            for _ in range(minibatches)
        ]

    def reference(self, rows: Sequence[TokenRow], compute: LogProbs) -> tuple[list[torch.Tensor], float]:
        """log pi_ref of each row's response tokens, and the share of rows for which it was known.

        Args:
            rows: what was drawn.
            compute: the host's reference worker.

        Raises:
            ValueError: what the cache holds is not what the reference gives; seen when rows of an earlier run are first
                asked for, of which a few are computed again.
        """
        cache = self._open_cache()
        if not self._rechecked:
            loaded = [row for row in rows if cache.was_loaded(row) and cache.get(row) is not None]
            if loaded:
                self._recheck(cache, loaded[:RECHECKED_ROWS], compute)
                self._rechecked = True
        found = [cache.get(row) for row in rows]
        missing = [row for row, values in zip(rows, found, strict=True) if values is None]
        if missing:
            cache.add(missing, compute(missing))
            found = [cache.get(row) for row in rows]
        return [values for values in found if values is not None], 1 - len(missing) / max(len(rows), 1)

    def save(self, folder: Path) -> None:
        """Write the sampler's state into a checkpoint folder of the host."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / STATE_FILE).write_text(json.dumps({"preference_sampler": self.sampler.state_dict()}, indent=1))

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint folder; one of another algorithm has no state, which is said."""
        file = folder / STATE_FILE
        if not file.is_file():
            print(
                f"fgrpo-plugin: {folder} holds no {STATE_FILE}: preference rows start from the beginning.", flush=True
            )
            return
        self.sampler.load_state_dict(json.loads(file.read_text())["preference_sampler"])

    def _load(self, *, held_out: bool) -> TokenRows:
        loaded = load_preference_rows(self._config, self._tokenizer, held_out=held_out)
        print("fgrpo-plugin: " + "\n".join(loaded.lines), flush=True)
        return loaded.rows

    def _open_cache(self) -> ReferenceCache:
        if self._cache is None:
            self._cache = ReferenceCache(self._folder, self._key)
            for file in self._cache.damaged:
                print(f"fgrpo-plugin: {file} was damaged; it is removed, and its rows are computed anew.", flush=True)
        return self._cache

    def _recheck(self, cache: ReferenceCache, known: Sequence[TokenRow], compute: LogProbs) -> None:
        pairs = zip(compute(known), map(cache.get, known), strict=True)
        differences = torch.cat([(again - before).abs() for again, before in pairs])  # type: ignore[operator]
        worst, mean = differences.max().item(), differences.mean().item()
        exact = reference_dtype(self._config) in ("fp32", "float32")
        most, most_mean = RECHECK_TOLERANCE["float32" if exact else "other"]
        if worst > most or mean > most_mean:
            raise ValueError(
                f"{cache.folder}: cached reference log-probs differ from the reference's by up to {worst:.3g} nats, "
                f"{mean:.3g} in the mean, in {len(known)} rows computed again (up to {most} and {most_mean} is noise); "
                "delete the folder, or name another data.preference.cache_dir."
            )


def reference_dtype(config: Any) -> str:
    """The number format in which the host's reference computes, as its configuration names it."""
    ref = _reference_section(config)
    if ref.get("strategy") == "megatron":
        return str(ref.get("megatron", {}).get("dtype", "bfloat16"))
    # Without the section the host computes in bfloat16.
    return str((ref.get("fsdp_config", {}).get("mixed_precision") or {}).get("param_dtype", "bf16"))


def _reference_section(config: Any) -> Any:
    return config.actor_rollout_ref["actor" if reference_is_in_actor(config) else "ref"]


def cache_key(config: Any, fingerprint: str) -> dict[str, Any]:
    """Everything but the row that a reference log-prob depends on."""
    import verl
    from omegaconf import OmegaConf

    model, rollout = config.actor_rollout_ref.model, config.actor_rollout_ref.rollout
    override = model.get("override_config") or {}
    return {
        "reference": fingerprint,
        "override_config": OmegaConf.to_container(override) if OmegaConf.is_config(override) else dict(override),
        "temperature": float(rollout.temperature),
        "dtype": reference_dtype(config),
        "model_dtype": str((_reference_section(config).get("fsdp_config") or {}).get("model_dtype")),
        "engine": str(_reference_section(config).get("strategy")),
        "host": f"verl {verl.__version__}",
    }
