"""The off-policy half on the driver: preference rows, their reference log-probs, their place in the actor's batch."""

import json
import math
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fgrpo_plugin.config import FDivergenceConfig, PreferenceConfig
from fgrpo_plugin.host.policy_loss import PREFERENCE_FIELDS, ROW_FIELDS
from fgrpo_plugin.preference.files import Preferences, read_preferences
from fgrpo_plugin.preference.reference_cache import DEFAULT_FOLDER, ReferenceCache, reference_fingerprint
from fgrpo_plugin.preference.sampler import PreferenceSampler
from fgrpo_plugin.preference.tokens import TokenRow, encode

STATE_FILE = "f_divergence.json"
RECHECKED_ROWS = 8
RECHECK_TOLERANCE = {"float32": 1e-3, "other": 0.3}  # nats a token; low precision depends on what else is in a batch
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
        self._cache: ReferenceCache | None = None

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
            rows: a multiple of the data-parallel size.
            compute: the host's reference worker.
        """
        cache = self._open_cache(rows, compute)
        known = sum(cache.get(row) is not None for row in rows)
        if known < len(rows):
            cache.add(rows, compute(rows))
        found = [cache.get(row) for row in rows]
        return [values for values in found if values is not None], known / max(len(rows), 1)

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
            template=dict(data.get("apply_chat_template_kwargs", None) or {}),
        )
        print(_summary(files, found, encoded), flush=True)
        return encoded.rows

    def _open_cache(self, rows: Sequence[TokenRow], compute: LogProbs) -> ReferenceCache:
        """The cache, of which a few rows have been computed again and agree."""
        if self._cache is not None:
            return self._cache
        folder = Path(self.settings.cache_dir or DEFAULT_FOLDER)
        key = cache_key(self._config, reference_fingerprint(self._config.actor_rollout_ref.model.path, folder))
        cache = ReferenceCache(folder, key)
        for file in cache.damaged:
            print(f"fgrpo-plugin: {file} was damaged; it is removed, and its rows are computed anew.", flush=True)
        known = [row for row in rows if cache.get(row) is not None]
        if known:
            self._recheck(cache, rows, known[:RECHECKED_ROWS], compute)
        self._cache = cache
        return cache

    def _recheck(
        self, cache: ReferenceCache, rows: Sequence[TokenRow], known: Sequence[TokenRow], compute: LogProbs
    ) -> None:
        # The host takes multiples of the data-parallel size, and `rows` is one.
        again = {row.digest: values for row, values in zip(rows, compute(rows), strict=True)}
        worst = max((again[row.digest] - cache.get(row)).abs().max().item() for row in known)  # type: ignore[operator]
        exact = reference_dtype(self._config) in ("fp32", "float32")
        allowed = RECHECK_TOLERANCE["float32" if exact else "other"]
        if worst > allowed:
            raise ValueError(
                f"{cache.folder}: cached reference log-probs differ from the reference's by {worst:.3g} nats in "
                f"{len(known)} rows computed again (at most {allowed} is noise); delete the folder, or name another "
                "data.preference.cache_dir."
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
    for files, split in ((wanted.files, wanted.split), (wanted.val_files, wanted.val_split)):
        if files:
            read_preferences(files, split=split, on_bad_row=wanted.on_bad_row)
    actor = config.actor_rollout_ref.actor
    rows, ranks = rows_per_minibatch(config), data_parallel_size(config)
    if rows % (2 * ranks):
        raise ValueError(
            f"data.preference.batch_size={rows} must be a multiple of {2 * ranks}: as many rows of each side on each "
            f"of {ranks} data-parallel ranks; set it to {max(1, round(rows / 2 / ranks)) * 2 * ranks}."
        )
    if not actor.use_dynamic_bsz and actor.ppo_micro_batch_size_per_gpu:
        on_policy = 0 if settings.constant_lam == 1 else actor.ppo_mini_batch_size * config.actor_rollout_ref.rollout.n
        per_rank, micro = (on_policy + rows) // ranks, actor.ppo_micro_batch_size_per_gpu
        if per_rank % micro:
            raise ValueError(
                f"data.preference.batch_size={rows} makes {per_rank} rows a mini-batch on each rank, no multiple of "
                f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={micro}; change either, or set "
                "actor_rollout_ref.actor.use_dynamic_bsz=true."
            )


def data_parallel_size(config: Any) -> int:
    """Ranks over which the host spreads rows, from its configuration."""
    actor, trainer = config.actor_rollout_ref.actor, config.trainer
    world = trainer.nnodes * trainer.n_gpus_per_node
    if actor.strategy == "megatron":
        parallel = actor.megatron
        if parallel.get("dynamic_context_parallel"):
            return 1  # every rank is given every row
        shared = (
            parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size * parallel.context_parallel_size
        )
    else:
        shared = actor.get("fsdp_config", {}).get("ulysses_sequence_parallel_size", 1) or 1
    return max(1, world // shared)


def rows_per_minibatch(config: Any) -> int:
    """Preference rows of one optimiser step: asked for, or as many as it has on-policy rows."""
    asked = preference_settings(config).batch_size
    return asked or config.actor_rollout_ref.actor.ppo_mini_batch_size * config.actor_rollout_ref.rollout.n


def reference_dtype(config: Any) -> str:
    """The number format in which the host's reference computes, as its configuration names it."""
    ref = config.actor_rollout_ref["actor" if reference_is_in_actor(config) else "ref"]
    if ref.get("strategy") == "megatron":
        return str(ref.get("megatron", {}).get("dtype", "bfloat16"))
    engine = ref.get("fsdp_config", {})
    return str((engine.get("mixed_precision") or {}).get("param_dtype") or engine.get("dtype", "bfloat16"))


def reference_is_in_actor(config: Any) -> bool:
    """Whether the reference is the actor with its adapter switched off (LoRA)."""
    model = config.actor_rollout_ref.model
    rank = (model.get("lora") or {}).get("rank", 0) or model.get("lora_rank", 0) or 0
    return rank > 0 or model.get("lora_adapter_path") is not None


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
        "engine": str(config.actor_rollout_ref.ref.get("strategy")),
        "host": f"verl {verl.__version__}",
    }


def deal(rows: Sequence[TokenRow], ranks: int) -> list[list[TokenRow]]:
    """Spread drawn rows over ranks: as many of each side everywhere, about as many tokens, a couple on one rank.

    Args:
        rows: D+ and D- in turn, as drawn; a multiple of 2 * ranks.
        ranks: > 0.
    """
    couples = sorted(zip(rows[::2], rows[1::2], strict=True), key=lambda couple: -sum(map(_tokens, couple)))
    dealt: list[list[TokenRow]] = [[] for _ in range(ranks)]
    for first in range(0, len(couples), ranks):
        hand = couples[first : first + ranks]
        # The longest couple goes to the rank that has the fewest tokens so far.
        for couple, rank in zip(hand, sorted(dealt, key=lambda rank: sum(map(_tokens, rank))), strict=True):
            rank += couple
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
    prompts = [torch.tensor(row.prompt_ids) for row in rows]
    responses = [torch.tensor(row.response_ids) for row in rows]
    lengths = [len(response) for response in responses]
    zeros = [torch.zeros(length) for length in lengths]
    fields = {
        "prompts": prompts,
        "responses": responses,
        "input_ids": [torch.cat(parts) for parts in zip(prompts, responses, strict=True)],
        "position_ids": [torch.arange(len(p) + n) for p, n in zip(prompts, lengths, strict=True)],
        "response_mask": [torch.zeros(length, dtype=torch.int64) for length in lengths],
        "loss_mask": [torch.zeros(length, dtype=torch.int64) for length in lengths],
    }
    if reference is not None:
        fields |= {"ref_log_prob": list(reference), "old_log_probs": zeros, "advantages": zeros}
    return {name: torch.nested.as_nested_tensor(values, layout=torch.jagged) for name, values in fields.items()}


def preference_numbers(rows: Sequence[TokenRow], settings: FDivergenceConfig, lam: float) -> dict[str, torch.Tensor]:
    """One number a row for the rows of one mini-batch: ``ROW_FIELDS`` and ``PREFERENCE_FIELDS``, (n,) float32 each.

    The count is the row's own side's: rows, or response tokens at level token (SPEC section 2, Normalisation).
    """
    tokens = torch.tensor([len(row.response_ids) for row in rows])
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
        rewards: (n,) implicit rewards.
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
    if not len(differences):
        differences = (above.unsqueeze(-1) - below).flatten()
    won = (differences > 0).double().mean() + 0.5 * (differences == 0).double().mean()
    estimate = divergence.link(above).mean() - divergence.conjugate_of_link(below).mean()
    return {
        "val-preference/accuracy": float(won),
        "val-preference/implicit_reward_margin": float(above.mean() - below.mean()),
        "val-preference/divergence_estimate": float(estimate) + divergence.estimate_offset,
    }


def _tokens(row: TokenRow) -> int:
    return len(row.prompt_ids) + len(row.response_ids)


def _summary(files: list[str], found: Preferences, encoded: Any) -> str:
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
    lines += [f"  too long: {count} {what}" for what, count in encoded.too_long.items()]
    return "\n".join(lines)
