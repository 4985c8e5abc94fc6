"""The weights of a checkpoint, whole, by name. Files are mapped rather than read: what is kept is what is used."""

import logging
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fgrpo_plugin.export.checkpoint import Checkpoint
from fgrpo_plugin.model_loading import load_causal_lm

State = dict[str, torch.Tensor]


def load_rank_files(
    checkpoint: Checkpoint, say: Callable[[str], None], *, only: Callable[[str], bool] = lambda name: True
) -> State:
    """FSDP's and FSDP2's files put together, in the precision in which they were saved.

    verl's own merger casts to bfloat16 while it reads, which would round a LoRA adapter before it is merged.

    Args:
        checkpoint: of form ``fsdp``.
        say: gets a line.
        only: which names are put together.

    Returns:
        name -> whole tensor, named as in the model that was trained (with PEFT's names where it was LoRA).

    Raises:
        ValueError: a rank's file is missing, cut off or of another checkpoint.
    """
    ranks, actor = checkpoint.ranks, checkpoint.actor
    files = [actor / f"model_world_size_{ranks}_rank_{rank}.pt" for rank in range(ranks)]
    missing = [rank for rank, file in enumerate(files) if not file.is_file()]
    first = None if 0 in missing else _load(files[0])
    replica = list(range(ranks)) if first is None else _ranks_of_one_replica(first, ranks, actor)
    if lacking := [str(rank) for rank in replica if rank in missing]:
        shown = ", ".join(lacking[:8]) + (", ..." if len(lacking) > 8 else "")
        raise ValueError(
            f"{actor}: of {ranks} ranks' files (model_world_size_{ranks}_rank_N.pt) that of rank {shown} is missing; "
            "each machine of a run writes its own: copy them all into this folder, or choose another step with --step."
        )
    assert first is not None
    say(f"reading {len(replica)} rank file{'s' if len(replica) > 1 else ''} of {actor}")
    shards = [first if rank == 0 else _load(files[rank]) for rank in replica]
    if any(shard.keys() != first.keys() for shard in shards):
        raise ValueError(f"{actor}: its rank files name different weights, so they are of several checkpoints.")
    return {name: _whole(name, [shard.pop(name) for shard in shards], actor) for name in list(first) if only(name)}


def _load(file: Path) -> dict[str, Any]:
    import torch.distributed.tensor

    try:
        with _quiet("torch.distributed.device_mesh"):
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # of many kinds: what is cut off or foreign fails in torch, pickle or zip
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{file} is half-written or no checkpoint of verl ({reason:.120}); choose an earlier step with --step."
        ) from None
    if not isinstance(found, dict) or not found or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise ValueError(f"{file} holds no weights; choose another step with --step.")
    return found


def _ranks_of_one_replica(shard: dict[str, Any], ranks: int, actor: Path) -> list[int]:
    """The ranks whose parts make the whole: all, or those of the first replica of hybrid sharding."""
    from torch.distributed.tensor import DTensor

    sharded = next((value for value in shard.values() if isinstance(value, DTensor)), None)
    if sharded is None:
        return [0]
    names, mesh = sharded.device_mesh.mesh_dim_names, sharded.device_mesh.mesh
    if names == ("fsdp",) and mesh.numel() == ranks:
        return list(range(ranks))
    if names == ("ddp", "fsdp") and mesh.numel() == ranks:
        return [int(rank) for rank in mesh[0]]
    raise ValueError(
        f"{actor}: its weights are sharded over {names} of {tuple(mesh.shape)}, and fgrpo export knows FSDP's alone; "
        "save them with hf_model in actor_rollout_ref.actor.checkpoint.save_contents."
    )


def _whole(name: str, parts: list[Any], actor: Path) -> torch.Tensor:
    from torch.distributed.tensor import DTensor, Replicate, Shard

    one = parts[0]
    if not isinstance(one, DTensor):
        if any(not torch.equal(one, other) for other in parts[1:]):
            raise ValueError(f"{actor}: {name} differs between ranks that should hold the same; save it anew.")
        return one
    placement = one.placements[-1]
    local = [part.to_local() for part in parts]
    if type(placement) is Replicate:
        found = local[0]
    elif type(placement) is Shard:
        found = torch.cat(local, dim=placement.dim) if len(local) > 1 else local[0]
    else:
        raise ValueError(f"{actor}: {name} is placed as {placement}, which fgrpo export does not know.")
    if found.shape != one.shape:
        raise ValueError(f"{actor}: {name} has {tuple(found.shape)} of {tuple(one.shape)} entries; save it anew.")
    return found


def load_model(model: str, dtype: torch.dtype | str, setting: str, *, trust: bool = False) -> State:
    """The weights of a Hugging Face model under the names that it has in memory.

    Args:
        model: a folder, or a name on a model hub.
        dtype: to load in; ``auto`` for that of its files.
        setting: what the user set, for messages.
        trust: run the model's own code.

    Raises:
        ValueError: it cannot be loaded, or its files lack weights.
    """
    return dict(load_causal_lm(model, dtype, setting, attention="eager", trust=trust).state_dict())


def check_finite(name: str, value: torch.Tensor) -> None:
    """Raise the ValueError of a weight that has a NaN or an infinite entry, whose model generates nothing."""
    if value.is_floating_point() and value.numel() and not all(bound.isfinite() for bound in value.aminmax()):
        raise ValueError(
            f"{name} has entries that are no numbers: the run diverged; choose an earlier step with --step."
        )


@contextmanager
def _quiet(name: str) -> Any:
    """Without a logger's warnings: torch says of each mesh that it is read outside its process group."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
