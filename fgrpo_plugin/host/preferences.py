"""The off-policy half on the driver: preference rows, their reference log-probs, their place in the actor's batch."""

import itertools
import json
import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.metric_table import VALIDATION
from fgrpo_plugin.host.parallel import check_micro_batches, data_parallel_size, reference_is_in_actor
from fgrpo_plugin.host.policy_loss import PREFERENCE_FIELDS, ROW_FIELDS
from fgrpo_plugin.losses import clip_implicit_reward
from fgrpo_plugin.preference.config import PreferenceConfig
from fgrpo_plugin.preference.files import PreferenceData, read_preferences
from fgrpo_plugin.preference.reference_cache import DEFAULT_FOLDER, ReferenceCache, reference_fingerprint
from fgrpo_plugin.preference.sampler import PreferenceSampler
from fgrpo_plugin.preference.tokens import Encoded, TokenRow, encode

STATE_FILE = "f_divergence.json"
RECHECKED_ROWS = 8
BLOCK_ROWS = 512  # preference rows that are put into the host's queue at a time
# Largest and mean difference, nats a token; low precision depends on what else is in a batch.
RECHECK_TOLERANCE = {"float32": (1e-3, 1e-3), "other": (0.3, 0.05)}
ENGINE_FIELDS = (
    "input_ids",
    "position_ids",
    "prompts",
    "responses",
    "response_mask",
    "loss_mask",
    "old_log_probs",
    "ref_log_prob",
    "advantages",
)
"""What the host's engine and loss read of a row; on-policy rows have them all when the actor is updated."""

LogProbs = Callable[[Sequence[TokenRow]], list[torch.Tensor]]


class PreferenceRows:
    """Preference data as the trainer uses them: drawn, with reference log-probs, in the host's form.

    Args:
        config: the host's whole configuration, validated.
        tokenizer: the host's.
    """

    def __init__(self, config: Any, tokenizer: Any):
        self.settings: PreferenceConfig = preference_settings(config)
        self._config = config
        self._tokenizer = tokenizer
        self.rows = self._load(self.settings.files, self.settings.split)
        self.held_out = self._load(self.settings.val_files, self.settings.val_split) if self.settings.val_files else []
        self.sampler = PreferenceSampler(self.rows, seed=self.settings.seed, keep_pairs=self.settings.keep_pairs)
        self.batch_size = rows_per_minibatch(config)
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

    def _load(self, files: list[str], split: str) -> list[TokenRow]:
        data = self._config.data
        found = read_preferences(files, split=split, on_bad_row=self.settings.on_bad_row)
        encoded = encode(
            found.rows,
            self._tokenizer,
            max_prompt_length=data.max_prompt_length,
            max_response_length=data.max_response_length,
            on_too_long=self.settings.on_too_long,
            on_bad_row=self.settings.on_bad_row,
            template=dict(data.get("apply_chat_template_kwargs", None) or {}),
        )
        print(_summary(found, encoded), flush=True)
        if len({row.desirable for row in encoded.rows}) < 2:
            raise ValueError(f"{', '.join(files)}: rows of one side alone are left; both D+ and D- are needed.")
        return encoded.rows

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


def preference_settings(config: Any) -> PreferenceConfig:
    """The section ``data.preference``.

    Raises:
        ValueError: the section is missing, has an unknown key or a bad value; the message names it.
    """
    from omegaconf import OmegaConf

    section = OmegaConf.select(config, "data.preference")
    values: dict[str, Any] = OmegaConf.to_container(section, resolve=True) if section is not None else {}  # type: ignore
    unknown = [name for name in values if name not in PreferenceConfig.__dataclass_fields__]
    if unknown:
        known = ", ".join(PreferenceConfig.__dataclass_fields__)
        raise ValueError(f"data.preference.{unknown[0]} is not known; choose among {known}.")
    try:
        return PreferenceConfig(**values)
    except ValueError as error:
        raise ValueError(f"data.preference.{error}") from error


def check_preferences(config: Any, settings: FDivergenceConfig) -> None:
    """Refuse preference data and batch sizes that cannot be used, before Ray starts.

    Raises:
        ValueError: names the setting and the remedy.
    """
    wanted = preference_settings(config)
    rows, ranks = rows_per_minibatch(config), data_parallel_size(config)
    for name, files, split in (
        ("files", wanted.files, wanted.split),
        ("val_files", wanted.val_files, wanted.val_split),
    ):
        found = read_preferences(files, split=split, on_bad_row=wanted.on_bad_row).rows if files else []
        desirable = sum(row.desirable for row in found)
        scarcer = min(desirable, len(found) - desirable)
        if found and not scarcer:
            raise ValueError(f"data.preference.{name} hold one side alone; both D+ and D- rows are needed.")
        if name == "files" and rows > 2 * scarcer:
            raise ValueError(
                f"data.preference.batch_size={rows} is more than the preference data hold without repetition "
                f"({scarcer} on the scarcer side); set it to {2 * scarcer} or less, or add data."
            )
    if rows % (2 * ranks):
        raise ValueError(
            f"data.preference.batch_size={rows} must be a multiple of {2 * ranks}: as many rows of each side on each "
            f"of {ranks} data-parallel ranks; set it to {max(1, round(rows / 2 / ranks)) * 2 * ranks}."
        )
    check_micro_batches(config, answers=settings.constant_lam != 1, preference_rows=rows)


def rows_per_minibatch(config: Any) -> int:
    """Preference rows of one optimiser step: asked for, or as many as it has on-policy rows."""
    asked = preference_settings(config).batch_size
    return asked or config.actor_rollout_ref.actor.ppo_mini_batch_size * config.actor_rollout_ref.rollout.n


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


def deal(rows: Sequence[TokenRow], ranks: int) -> list[list[TokenRow]]:
    """Spread drawn rows over ranks: as many of each side everywhere, about as many tokens, a couple on one rank.

    Args:
        rows: D+ and D- in turn, as drawn; a multiple of 2 * ranks.
        ranks: > 0.
    """
    couples = sorted(zip(rows[::2], rows[1::2], strict=True), key=_tokens, reverse=True)
    dealt: list[list[TokenRow]] = [[] for _ in range(ranks)]
    tokens = [0] * ranks
    for first in range(0, len(couples), ranks):
        hand = couples[first : first + ranks]
        # The longest couple goes to the rank that has the fewest tokens so far.
        for couple, rank in zip(hand, sorted(range(ranks), key=tokens.__getitem__), strict=True):
            dealt[rank] += couple
            tokens[rank] += _tokens(couple)
    return dealt


def joined_order(on_policy: int, minibatches: int, ranks: int, per_rank: int) -> list[tuple[str, int]]:
    """Which row stands where in the actor's batch: ("on", i) or ("off", i).

    The host gives each rank a contiguous share and walks through it in mini-batches, so the preference rows of rank k
    and mini-batch j are mixed evenly into rank k's j-th part.

    Args:
        on_policy: rows of the host's batch, a multiple of ranks * minibatches.
        minibatches: optimiser steps of this update.
        ranks: data-parallel size.
        per_rank: preference rows of one rank in one mini-batch; row i of them is counted mini-batch by mini-batch,
            rank by rank.
    """
    part = on_policy // ranks // minibatches
    order: list[tuple[str, int]] = []
    for rank in range(ranks):
        for minibatch in range(minibatches):
            mine = (rank * minibatches + minibatch) * part
            theirs = (minibatch * ranks + rank) * per_rank
            places = [((i + 0.5) / part, "on", mine + i) for i in range(part)]
            places += [((i + 0.5) / per_rank, "off", theirs + i) for i in range(per_rank)]
            order += [(kind, index) for _, kind, index in sorted(places)]
    return order


def as_host_rows(rows: Sequence[TokenRow], reference: Sequence[torch.Tensor] | None = None) -> dict[str, Any]:
    """Rows in the form of the host's queue: nested tensors, one component a row.

    Their response_mask and loss_mask are 0, so that nothing of the host (KL and entropy terms, token counts) sees them;
    our loss takes their response tokens from ``f_divergence_tokens``.

    Args:
        rows: token rows.
        reference: log pi_ref of the response tokens; None while it is still to be computed.
    """
    # One allocation a field, and one for all fields of zeros of a kind: making tensors row by row takes far longer.
    whole, responses = [len(row.ids) for row in rows], [row.response_length for row in rows]
    positions = np.arange(max(whole))
    nothing = _nested(np.zeros(sum(responses), dtype=np.int64), responses)
    fields = {
        "prompts": _nested(_joined(row.ids[: row.prompt_length] for row in rows), [row.prompt_length for row in rows]),
        "responses": _nested(_joined(row.ids[row.prompt_length :] for row in rows), responses),
        "input_ids": _nested(_joined(row.ids for row in rows), whole),
        "position_ids": _nested(_joined(positions[:length] for length in whole), whole),
        "response_mask": nothing,
        "loss_mask": nothing,
    }
    if reference is not None:
        zeros = _nested(np.zeros(sum(responses), dtype=np.float32), responses)
        log_probs = _nested(torch.cat(list(reference)), responses)
        fields |= {"ref_log_prob": log_probs, "old_log_probs": zeros, "advantages": zeros}
    return fields


def host_blocks(
    rows: Sequence[TokenRow], reference: Sequence[torch.Tensor], numbers: Mapping[str, torch.Tensor]
) -> Iterator[tuple[slice, dict[str, Any]]]:
    """Rows in the form of the host's queue, a block at a time: a whole large batch would fill the driver's memory.

    Args:
        rows: n rows.
        reference: log pi_ref of each row's response tokens.
        numbers: name -> (n,), as `preference_numbers` gives them.

    Yields:
        Which rows, and their fields.
    """
    for start in range(0, len(rows), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        attached = {name: values[block] for name, values in numbers.items()}
        yield block, as_host_rows(rows[block], reference[block]) | attached


def _joined(rows: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate(list(rows), dtype=np.int64)


def _nested(values: np.ndarray | torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """A nested tensor, of the values of all rows one after another."""
    offsets = torch.tensor([0, *itertools.accumulate(lengths)])
    return torch.nested.nested_tensor_from_jagged(torch.as_tensor(values), offsets)


def preference_numbers(rows: Sequence[TokenRow], settings: FDivergenceConfig, lam: float) -> dict[str, torch.Tensor]:
    """One number a row for the rows of one mini-batch: ``ROW_FIELDS`` and ``PREFERENCE_FIELDS``, (n,) float32 each.

    The count is the row's own side's: rows, or response tokens at level token (SPEC section 2, Normalisation).
    """
    tokens = torch.tensor([row.response_length for row in rows])
    desirable = torch.tensor([row.desirable for row in rows])
    share = tokens if settings.level == "token" else torch.ones_like(tokens)
    count = torch.where(desirable, share[desirable].sum(), share[~desirable].sum())
    nothing = torch.zeros(len(rows))
    values = {
        **dict(zip(ROW_FIELDS, (nothing, nothing, count, nothing), strict=True)),
        **dict(
            zip(
                PREFERENCE_FIELDS,
                (torch.where(desirable, 1.0, -1.0), tokens, torch.full_like(nothing, lam)),
                strict=True,
            )
        ),
    }
    return {name: value.float() for name, value in values.items()}


def on_policy_fields(rows: int, lam: float) -> dict[str, torch.Tensor]:
    """``PREFERENCE_FIELDS`` of on-policy rows, (n,) float32 each."""
    return dict(zip(PREFERENCE_FIELDS, (torch.zeros(rows), torch.zeros(rows), torch.full((rows,), lam)), strict=True))


def log_prob_multiple(config: Any) -> int:
    """Rows that the host's log-prob passes take are a multiple of this: whole micro-batches on every rank."""
    ref, rollout, trainer = config.actor_rollout_ref.ref, config.actor_rollout_ref.rollout, config.trainer
    sizes = [
        section.get("log_prob_micro_batch_size_per_gpu") or 1
        for section in (ref, rollout)
        if not section.get("log_prob_use_dynamic_bsz", False)
    ]
    return trainer.nnodes * trainer.n_gpus_per_node * math.lcm(*sizes)


def new_keys(count: int) -> list[str]:
    """Keys that no row of the host has."""
    run = uuid.uuid4().hex
    return [f"preference{run}_{i}_0" for i in range(count)]


def held_out_metrics(rows: Sequence[TokenRow], rewards: torch.Tensor, settings: FDivergenceConfig) -> dict[str, float]:
    """How well the implicit reward tells the sides of held-out data apart.

    Args:
        rows: n rows.
        rewards: (n,) implicit rewards; clipped as in the loss for the estimate.
        settings: for the divergence.

    Returns:
        Accuracy: the share of pairs whose desirable row has the larger reward (a tie counts half); without pairs, of
        all couples of a D+ and a D- row. And the margin between the sides' mean rewards, and the divergence estimate.
    """
    divergence = settings.build_divergence()
    desirable = torch.tensor([row.desirable for row in rows])
    above, below = rewards[desirable], rewards[~desirable]
    pairs: dict[str, dict[bool, float]] = {}
    for row, reward in zip(rows, rewards.tolist(), strict=True):
        if row.pair is not None:
            pairs.setdefault(row.pair, {})[row.desirable] = reward
    differences = torch.tensor([pair[True] - pair[False] for pair in pairs.values() if len(pair) == 2])
    if len(differences):
        won = float((differences > 0).double().mean() + 0.5 * (differences == 0).double().mean())
    else:  # Mann and Whitney's U, by ranks: the couples themselves may be too many to hold
        ordered = below.sort().values
        wins = torch.searchsorted(ordered, above) + torch.searchsorted(ordered, above, right=True)
        won = float(wins.double().mean() / 2 / len(below))
    clipped, _ = clip_implicit_reward(rewards, divergence, settings.implicit_reward_clip)
    link, conjugate = divergence.link(clipped[desirable]), divergence.conjugate_of_link(clipped[~desirable])
    estimate = link.double().mean() - conjugate.double().mean()
    return {
        VALIDATION + "accuracy": won,
        VALIDATION + "implicit_reward_margin": float(above.mean() - below.mean()),
        VALIDATION + "divergence_estimate": float(estimate) + divergence.estimate_offset,
    }


def _tokens(rows: Sequence[TokenRow]) -> int:
    return sum(len(row.ids) for row in rows)


def _summary(found: PreferenceData, encoded: Encoded) -> str:
    desirable = sum(row.desirable for row in encoded.rows)
    lines = [
        f"fgrpo-plugin: {len(encoded.rows)} preference rows, {desirable} of them desirable, "
        f"of {found.examples} examples in {', '.join(f'{file} ({name})' for file, name in found.formats.items())}"
    ]
    lines += [
        f"  left out: {count} x {reason} (first: {found.first_skipped[reason]})"
        for reason, count in found.skipped.most_common()
    ]
    if found.at_mean:
        lines.append(f"  left out: {found.at_mean} responses at the mean of their scores")
    lines += [f"  columns not read: {file}: {', '.join(names)}" for file, names in found.ignored.items() if names]
    lines += [f"  left out: {count} rows: {reason}" for reason, count in encoded.skipped.most_common()]
    lines += [f"  too long: {count} {what}" for what, count in encoded.too_long.items()]
    return "\n".join(lines)
