"""How a reference ranks preference pairs, from a run's cache of its log-probs or by the model itself."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from fgrpo_plugin.folders import expanded
from fgrpo_plugin.model_loading import check_vocabulary, load_causal_lm, parameters_in, window_of
from fgrpo_plugin.preference.loading import RowSettings
from fgrpo_plugin.preference.model_files import WEIGHTS, model_fingerprint, weight_files
from fgrpo_plugin.preference.model_log_probs import response_log_probs
from fgrpo_plugin.preference.ranking import Ranked, pairs_of, ranked
from fgrpo_plugin.preference.reference_cache import DEFAULT_FOLDER, ReferenceCache, keys_in
from fgrpo_plugin.preference.token_rows import TokenRow
from fgrpo_plugin.preference.tokens import ON_TOO_LONG, cut
from fgrpo_plugin.typed_settings import require_one_of

MOST_CACHED = 10_000
"""Pairs taken from a cache: an interval of them is a hundredth wide to each side."""
_BESIDE_THE_WEIGHTS = 2**30  # bytes: logits, activations
_BYTES_A_LOGIT = 12  # of a pass: as the model gives it, divided by the temperature, and its exponential

Pair = tuple[TokenRow, TokenRow]


@dataclass(frozen=True)
class Asked:
    """Which pairs are ranked by which model.

    Attributes:
        model: a Hugging Face folder.
        pairs: how many are computed where no cache has as many.
        seed: of their choice.
        cache_dir: where runs keep reference log-probs; None for where they do if nothing is set.
        on_too_long: verl's lengths are kept as a run keeps them: "truncate" cuts; "drop" and "error" leave a pair out.
    """

    model: Path
    pairs: int
    seed: int = 0
    cache_dir: str | None = None
    on_too_long: str = "error"

    def __post_init__(self) -> None:
        require_one_of("--on-too-long", self.on_too_long, ON_TOO_LONG)


@dataclass(frozen=True)
class ReferenceRanking:
    """What came out.

    Attributes:
        found: of the pairs that were ranked; None where none could be.
        of: whole pairs that a run would take.
        lines: where the log-probs are from, and what was left out or refused.
    """

    found: Ranked | None
    of: int
    lines: list[str]


class _Skipped(Exception):
    """Why the model computes nothing."""


def rank_by_reference(
    rows: Sequence[TokenRow],
    settings: RowSettings,
    asked: Asked,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> ReferenceRanking:
    """Rank pairs by the reference's log-probs: cached ones where a cache has as many pairs as are asked for.

    Args:
        rows: in tokens, as a run's, before they are held against its lengths.
        settings: the run's lengths.
        asked: the model and how many pairs.
        on_progress: told of responses done and in all, where the model computes.
        say: gets a line before gigabytes are read.
    """
    places = pairs_of(rows).tolist()
    pairs = fitting([(rows[better], rows[worse]) for better, worse in places], settings, asked.on_too_long)
    lines = [f"{apart} pairs are left out: too long for the run"] if (apart := len(places) - len(pairs)) else []
    if not pairs:
        reason = "no pair fits into the run's lengths" if places else "there are no pairs of a D+ and a D- row"
        return ReferenceRanking(None, 0, [*lines, f"skipped: {reason}"])
    if not weight_files(asked.model):
        reason = f"{asked.model} holds a tokenizer and no weights ({', '.join(WEIGHTS)}); name the model's own folder"
        return ReferenceRanking(None, len(pairs), [*lines, f"skipped: {reason}"])
    window = _window(asked.model)
    if window is not None:
        wide = [pair for pair in pairs if all(len(row.ids) <= window for row in pair)]
        if len(wide) < len(pairs):
            lines.append(
                f"{len(pairs) - len(wide)} pairs are left out: longer than the model's window, {window} tokens"
            )
        if not wide:
            return ReferenceRanking(None, 0, [*lines, "skipped: no pair fits into the model's window"])
        pairs = wide

    known, temperature, about_cache = _cached(pairs, asked, say)
    lines += about_cache
    order = random.Random(asked.seed).sample(range(len(pairs)), len(pairs))
    wanted = min(asked.pairs, len(pairs))
    chosen = [place for place in order if place in known][:MOST_CACHED]
    if len(chosen) < wanted:
        sampled = order[:wanted]
        try:
            missing = [place for place in sampled if place not in known]
            computed, how = _computed([pairs[place] for place in missing], asked.model, temperature, on_progress)
            known |= dict(zip(missing, computed, strict=True))
            cached = len(sampled) - len(missing)
            lines.append(f"{len(missing)} pairs computed {how}" + (f", {cached} from the cache" if cached else ""))
            chosen = sampled
        except _Skipped as reason:
            if not chosen:
                return ReferenceRanking(None, len(pairs), [*lines, f"skipped: {reason}"])
            lines.append(f"those of the cache alone: {reason}")
    values = [values for place in chosen for values in known[place]]
    total = torch.tensor([float(row.double().sum()) for row in values], dtype=torch.float64)
    tokens = torch.tensor([len(row) for row in values])
    return ReferenceRanking(ranked(total, tokens, torch.arange(len(values)).view(-1, 2)), len(pairs), lines)


def _window(model: Path) -> int | None:
    try:
        return window_of(model, "--model")
    except ValueError:  # said where the model is loaded; a cache can be read without
        return None


def fitting(pairs: Sequence[Pair], settings: RowSettings, on_too_long: str) -> list[Pair]:
    """The pairs that a run would have at these lengths, as `preference.tokens.encode` makes them.

    Args:
        pairs: desirable and undesirable row of each.
        settings: most tokens of a prompt and of a response.
        on_too_long: "truncate" cuts rows, and leaves out a pair whose responses are then the same; else a pair
            with a row that is too long is left out.
    """
    lengths = settings.max_prompt_length, settings.max_response_length
    found = []
    for pair in pairs:
        if all(row.prompt_length <= lengths[0] and row.response_length <= lengths[1] for row in pair):
            found.append(pair)
        elif on_too_long == "truncate":
            better, worse = (cut(row, *lengths) for row in pair)
            if better.digest != worse.digest:
                found.append((better, worse))
    return found


def _cached(
    pairs: Sequence[Pair], asked: Asked, say: Callable[[str], None]
) -> tuple[dict[int, list[torch.Tensor]], float, list[str]]:
    """Of the cache with most pairs: place of a pair -> its rows' log-probs; the temperature; what is to be said."""
    folder = expanded(asked.cache_dir or DEFAULT_FOLDER)
    keys = keys_in(folder)
    if not keys:
        return {}, 1.0, [f"--cache-dir {folder} holds no cache of reference log-probs"] if asked.cache_dir else []
    weights = model_fingerprint(str(asked.model), "--model", folder / "hashes.json", say=say)
    mine = [key for key in keys if is_of_folder(key, weights)]
    if not mine:
        return {}, 1.0, [f"cache {folder}: its log-probs ({len(keys)} caches) are of other models; none is used"]
    best: tuple[int, float, ReferenceCache, dict[int, list[torch.Tensor]]] | None = None
    lines = []
    for key in mine:
        cache = ReferenceCache(folder, key)
        lines += [f"{file} was damaged and is removed" for file in cache.damaged]
        found = {}
        for place, pair in enumerate(pairs):
            values = [value for value in map(cache.get, pair) if value is not None]
            if len(values) == 2:
                found[place] = values
        temperature = float(key.get("temperature", 1.0))
        if best is None or (len(found), temperature == 1.0) > (best[0], best[1] == 1.0):
            best = len(found), temperature, cache, found
    assert best is not None
    count, temperature, cache, found = best
    if not count:
        why = "other data, another chat template or other lengths"
        return {}, 1.0, [*lines, f"cache {folder}: of this model, but without these pairs' tokens ({why})"]
    at = "" if temperature == 1.0 else f", at its run's temperature {temperature:g}"
    return found, temperature, [*lines, f"cache {cache.folder} has {count} pairs{at}"]


def is_of_folder(key: Mapping[str, Any], weights: str) -> bool:
    """Return whether a cache's key, of host/driver/reference_identity.py, is of the model as its folder has it.

    Not where a run gave it another configuration, overrode parts of it, or imported code for it.

    Args:
        key: of a cache.
        weights: the folder's `model_fingerprint`.
    """
    model = key.get("model")
    overridden = (model.get("override_config") or {}) if isinstance(model, Mapping) else {}
    changed = {name for name in overridden if name != "attn_implementation"}
    return key.get("weights") == weights and not changed and not {"configuration", "modules"} & key.keys()


def _computed(
    pairs: Sequence[Pair], model: Path, temperature: float, on_progress: Callable[[int, int], None]
) -> tuple[list[list[torch.Tensor]], str]:
    """log-probs of both rows of each pair, and how they were computed.

    Raises:
        _Skipped: the model cannot be loaded, or is too large.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32  # as a run's reference, by default and by group cpu
    name, where = str(dtype).removeprefix("torch."), "GPU" if device == "cuda" else "CPU"
    try:
        need = parameters_in(weight_files(model)) * dtype.itemsize + _BESIDE_THE_WEIGHTS
        free = _free(device)
        if need > free:
            raise _Skipped(
                f"the model takes about {need / 2**30:.1f} GiB in {name}, and {free / 2**30:.1f} GiB are free; use a "
                "larger machine, or a run's cache with --cache-dir"
            )
        loaded = load_causal_lm(str(model), dtype, "--model", local=True).to(device)
        rows = [row for pair in pairs for row in pair]
        check_vocabulary(loaded, max(int(row.ids.max()) for row in rows), f"--model={model}")
        _check_logits(loaded, max(row.response_length for row in rows), device)
        values = response_log_probs(loaded, rows, temperature=temperature, on_progress=on_progress)
        if not all(bool(torch.isfinite(value).all()) for value in values):
            raise _Skipped(f"--model={model}: its log-probs are not finite in {name}; look at its weights")
    except RuntimeError as error:  # a GPU's has a class of its own, a CPU's has not
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise _Skipped(f"the {where} has too little memory for a pass; use a larger one") from None
    except ValueError as error:
        raise _Skipped(str(error)) from None
    return [values[i : i + 2] for i in range(0, len(values), 2)], f"in {name} on the {where}"


def _free(device: str) -> int:
    """Bytes that a model and its passes may take."""
    free = int(psutil.virtual_memory().available)  # also on the way to a GPU
    return min(free, torch.cuda.mem_get_info()[0]) if device == "cuda" else free


def _check_logits(model: Any, longest: int, device: str) -> None:
    """Skip what the system would end without a word: a response has logits of the whole vocabulary at each token."""
    need, free = _BYTES_A_LOGIT * longest * int(model.config.get_text_config().vocab_size), _free(device)
    if need > free:
        raise _Skipped(
            f"the logits of a response of {longest} tokens take about {need / 2**30:.1f} GiB, and {free / 2**30:.1f} "
            "GiB are free; leave it out with --max-response-length"
        )
