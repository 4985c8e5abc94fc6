"""The file of an update that was not finite: what the loss got of each row, as `fgrpo replay` reads it.

One safetensors file: tensors of all rows, and in its header which loss with which settings saw them. No pickle.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

FORMAT = "fgrpo-replay 1"
TOKEN_FIELDS = ("log_prob", "old_log_prob", "ref_log_prob", "response_mask", "responses")
"""(n, T) each, 0 where a row has no token; `responses` are token ids, and may be missing."""

MEGATRONS_CHECK = "in local grad norm for bucket"
"""Words of Megatron's own error, before its optimiser's step, where check_for_nan_in_grad is set."""


class Saved(NamedTuple):
    """What a file holds.

    Attributes:
        rows: of `TOKEN_FIELDS` (n, T) each, and one number a row, (n,), under the names that the loss takes.
        about: format, kind (``loss`` or ``gradient``), loss, settings, dp_size, rank, step, said, versions.
    """

    rows: dict[str, torch.Tensor]
    about: dict[str, Any]


class NonFiniteUpdate(ArithmeticError):
    """A loss or gradient of a mini-batch is not finite; nothing of it has reached the parameters.

    Attributes:
        rows, about: as `Saved` has them.
    """

    def __init__(self, said: str, rows: dict[str, torch.Tensor], about: dict[str, Any]):
        super().__init__(said)
        self.rows, self.about = rows, about

    def __reduce__(self) -> tuple[Any, ...]:  # to the driver
        return type(self), (str(self), self.rows, self.about)


def gather(parts: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The rows of several micro-batches, one after the other, on the CPU.

    Args:
        parts: of each, (n, T) and (n,) tensors; T differs between them. Names that not all have are left out.
    """
    names = set.intersection(*map(set, parts))
    found = {}
    for name in sorted(names):
        values = [part[name].detach().cpu() for part in parts]
        if values[0].dim() == 2:
            width = max(value.shape[1] for value in values)
            values = [torch.nn.functional.pad(value, (0, width - value.shape[1])) for value in values]
        found[name] = torch.cat(values)
    mask = found["response_mask"].bool()
    if "f_divergence_side" in found:  # preference rows reach a worker with a mask of 0
        own = torch.arange(mask.shape[1]) < found["f_divergence_tokens"].unsqueeze(-1)
        mask = torch.where((found["f_divergence_side"] != 0).unsqueeze(-1), own, mask)
    for name in ("log_prob", "old_log_prob", "ref_log_prob"):
        found[name] = torch.where(mask, found[name], 0.0)
    return found


def pack(rows: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> bytes:
    """The content of a file."""
    versions = {name: version(name) for name in ("fgrpo-plugin", "torch", "verl")}
    header = {"format": FORMAT, **about, "versions": versions}
    return save(
        {name: value.contiguous() for name, value in rows.items()},
        {name: json.dumps(value) for name, value in header.items()},
    )


def unpack(file: Path) -> Saved:
    """Read a file.

    Raises:
        ValueError: it is damaged, or another kind of file.
    """
    try:
        with safe_open(file, "pt") as opened:
            about = {name: json.loads(value) for name, value in (opened.metadata() or {}).items()}
            rows = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (it cannot be iterated)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{file} is damaged, or no file of an update ({error}); name failed/step_N_rank_R.") from None
    if about.get("format") != FORMAT:
        raise ValueError(f"{file} is not of the format {FORMAT!r}, but {about.get('format')!r}; name another file.")
    return Saved(rows, about)
