"""Preference data on the driver: drawn once a step, with reference log-probs; state goes with verl's checkpoints."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fgrpo_plugin.folders import expanded, write_whole
from fgrpo_plugin.foreign_text import say
from fgrpo_plugin.host.driver.joining import deal
from fgrpo_plugin.host.driver.reference_identity import reference_dtype, reference_identity
from fgrpo_plugin.host.settings.preferences import (
    load_preference_rows,
    preference_rows_per_minibatch,
    preference_settings,
)
from fgrpo_plugin.preference.config import PreferenceConfig
from fgrpo_plugin.preference.reference_cache import DEFAULT_FOLDER, ReferenceCache
from fgrpo_plugin.preference.sampler import PreferenceSampler
from fgrpo_plugin.preference.token_rows import TokenRow, TokenRows

STATE_FILE = "f_divergence.json"
RECHECKED_ROWS, RECHECKED_TOKENS = (8, 64), 1000
"""Loaded rows that are computed again: as many as have so many tokens, within these two numbers."""
RECHECK_TOLERANCE = {
    "float32": {"largest": 1e-3, "mean": 1e-4, "drift": 1e-3},
    # Low precision depends on what else is in a batch. Measured in bfloat16 (docs/benchmarks.md): 0.32, 0.039, 0.11.
    "other": {"largest": 1.0, "mean": 0.1, "drift": 0.4},
}
"""Largest and mean size of a token's difference (nats), and drift: |sum of n differences| / sqrt(n), of each response
and of all tokens, where that is more than one token may differ. Noise has either sign, so that its drift does not grow
with n; another reference's does."""

LogProbs = Callable[[Sequence[TokenRow]], list[torch.Tensor]]


class PreferenceSource:
    """Preference data as the trainer uses them: drawn, with reference log-probs, in verl's form.

    Args:
        config: verl's whole configuration, validated.
        tokenizer: verl's.
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
        self._folder = expanded(self.settings.cache_dir or DEFAULT_FOLDER)
        # Now, since it may be refused.
        self._key = reference_identity(config, self._folder / "hashes.json", _say)
        self._cache: ReferenceCache | None = None
        self._rechecked: list[torch.Tensor] = []

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
            compute: verl's reference worker.

        Raises:
            ValueError: what the cache holds is not what the reference gives; seen when rows of an earlier run are first
                asked for, of which a few are computed again.
        """
        cache = self._open_cache()
        if known := self._to_recheck([row for row in rows if cache.was_loaded(row) and cache.get(row) is not None]):
            self._recheck(cache, known, compute)
        found = [cache.get(row) for row in rows]
        missing = [row for row, values in zip(rows, found, strict=True) if values is None]
        if missing:
            cache.add(missing, compute(missing))
            found = [cache.get(row) for row in rows]
        return [values for values in found if values is not None], 1 - len(missing) / max(len(rows), 1)

    def save(self, folder: Path) -> None:
        """Write the sampler's state into a checkpoint folder of verl."""
        folder.mkdir(parents=True, exist_ok=True)
        sampler = self.sampler.state_dict()
        state = {"preference_sampler": sampler, "sha256": _digest(sampler)}
        write_whole(folder / STATE_FILE, json.dumps(state, indent=1).encode())

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint folder; one of another algorithm has no state, which is said.

        Raises:
            ValueError: the state is damaged, or of other data or settings.
        """
        file = folder / STATE_FILE
        if not file.is_file():
            say(f"fgrpo-plugin: {folder} holds no {STATE_FILE}: preference rows start from the beginning.")
            return
        try:
            kept = json.loads(file.read_text())
            state = dict(kept["preference_sampler"])
            if kept.get("sha256", digest := _digest(state)) != digest:  # earlier versions wrote none
                raise ValueError("its hash is another")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{file} is damaged, so the place in the preference data is lost; go on from an earlier checkpoint by "
                "trainer.resume_mode=resume_path and trainer.resume_from_path, or start a new run."
            ) from error
        self.sampler.load_state_dict(state)

    def _load(self, *, held_out: bool) -> TokenRows:
        loaded = load_preference_rows(self._config, self._tokenizer, held_out=held_out)
        say("fgrpo-plugin: " + "\n".join(loaded.lines))
        return loaded.rows

    def _open_cache(self) -> ReferenceCache:
        if self._cache is None:
            self._cache = ReferenceCache(self._folder, self._key)
            for file in self._cache.damaged:
                say(f"fgrpo-plugin: {file} was damaged; it is removed, and its rows are computed anew.")
        return self._cache

    def _to_recheck(self, loaded: Sequence[TokenRow]) -> list[TokenRow]:
        """The first of these rows, as many as are still to be computed again."""
        rows, tokens, chosen = len(self._rechecked), sum(map(len, self._rechecked)), []
        for row in loaded:
            least, most = RECHECKED_ROWS
            if rows >= most or (rows >= least and tokens >= RECHECKED_TOKENS):
                break
            chosen.append(row)
            rows, tokens = rows + 1, tokens + row.response_length
        return chosen

    def _recheck(self, cache: ReferenceCache, known: Sequence[TokenRow], compute: LogProbs) -> None:
        pairs = zip(compute(known), map(cache.get, known), strict=True)
        self._rechecked += [again - before for again, before in pairs]  # type: ignore[operator]
        exact = reference_dtype(self._config) in ("fp32", "float32")
        noise = RECHECK_TOLERANCE["float32" if exact else "other"]
        found = differences_of(self._rechecked, noise["largest"])
        if not all(found[name] <= noise[name] for name in noise):  # NaN too
            raise ValueError(
                f"{cache.folder}: cached reference log-probs are not this reference's: of {len(self._rechecked)} rows "
                f"computed again, tokens differ by up to {found['largest']:.3g} nats, {found['mean']:.3g} in the mean, "
                f"and a response by {found['response']:.3g}; noise stays below {noise['largest']:g} and "
                f"{noise['mean']:g} a token, and {noise['drift']:g} x sqrt(tokens) a sum; delete the folder, or "
                "name another data.preference.cache_dir."
            )


def differences_of(rows: Sequence[torch.Tensor], one_token: float = 0.0) -> dict[str, float]:
    """Measure how far cached log-probs are from those computed again.

    Args:
        rows: differences of each response's tokens, nats; at least one token in all.
        one_token: what one token may differ by: a sum of no more has no drift.

    Returns:
        ``largest`` and ``mean`` size of a token's, ``response``: the largest size of a response's sum, ``drift``: the
        largest |sum| / sqrt(tokens) of a response and of all tokens together.
    """
    together = torch.cat(list(rows)).double()
    sums = [(abs(float(part.double().sum())), len(part)) for part in (*rows, together) if len(part)]
    return {
        "largest": float(together.abs().max()),
        "mean": float(together.abs().mean()),
        "response": max(total for total, _ in sums[:-1]),
        "drift": max(0.0 if total <= one_token else total / tokens**0.5 for total, tokens in sums),
    }


def _digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _say(line: str) -> None:
    say(f"fgrpo-plugin: {line}")
