"""How far two computations of the same log-probs are apart where only rounding differs.

    python -m benchmarks.reference_noise --model FOLDER --rows FILE [--output table.md]

Texts of a preference file (its column ``chosen``), half of them long, by one Hugging Face model: alone or in a padded
batch, with two implementations of attention, in float32 and in bfloat16. The bounds of the recheck of cached reference
log-probs (host/driver/preference_source.py) stand on these figures.
"""

import itertools
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from fgrpo_plugin.host.driver.preference_source import differences_of
from fgrpo_plugin.model_loading import load_causal_lm
from fgrpo_plugin.tables import load

LONG, SHORT, EACH = 900, 300, 4
COLUMNS = {"largest": "largest token", "mean": "mean token", "response": "response's sum", "drift": "drift"}


def log_probs(model: Any, rows: list[list[int]]) -> list[torch.Tensor]:
    """log p of each row's tokens but the first, from one right-padded batch."""
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, : len(row)], mask[place, : len(row)] = torch.tensor(row), 1
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
    found = []
    for place, row in enumerate(rows):
        values = logits[place, : len(row) - 1].float().log_softmax(-1)
        found.append(values.gather(-1, ids[place, 1 : len(row)].unsqueeze(-1)).squeeze(-1))
    return found


def main(
    model: Annotated[Path, typer.Option(help="Hugging Face folder.")],
    rows: Annotated[Path, typer.Option(help="Preference file with a column `chosen`.")],
    output: Annotated[Path | None, typer.Option(help="Also write the table there, as Markdown.")] = None,
) -> None:
    """Print the differences."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [
        str(row["chosen"]) for row in itertools.islice(load(str(rows), "train", split_setting="--rows").rows, 4096)
    ]
    tokens = sorted((tokenizer(text)["input_ids"] for text in texts), key=len, reverse=True)
    middle = next((place for place, row in enumerate(tokens) if len(row) <= 2 * SHORT), 0)
    chosen = [row[:LONG] for row in tokens[:EACH]] + [row[:SHORT] for row in tokens[middle : middle + EACH]]
    lines = ["| compared | " + " | ".join(COLUMNS.values()) + " |", "| --- " * (len(COLUMNS) + 1) + "|"]
    for dtype in (torch.float32, torch.bfloat16):
        found = {}
        for attention in ("sdpa", "eager"):
            loaded = load_causal_lm(str(model), dtype, "--model", attention=attention)
            found[attention, "batch"] = log_probs(loaded, chosen)
            found[attention, "alone"] = [log_probs(loaded, [row])[0] for row in chosen]
        for label, one, other in (
            ("alone, in a batch", ("sdpa", "alone"), ("sdpa", "batch")),
            ("sdpa, eager attention", ("sdpa", "batch"), ("eager", "batch")),
        ):
            apart = differences_of([x - y for x, y in zip(found[one], found[other], strict=True)])
            numbers = " | ".join(f"{apart[name]:.2g}" for name in COLUMNS)
            lines.append(f"| {str(dtype).removeprefix('torch.')}: {label} | {numbers} |")
    lengths = ", ".join(str(len(row)) for row in chosen)
    title = f"{model.name}, rows of {lengths} tokens, nats; CPU, torch {torch.__version__}, {date.today()}:"
    print("\n".join([title, "", *lines]))
    if output is not None:
        output.write_text("\n".join([title, "", *lines, ""]))


if __name__ == "__main__":
    typer.run(main)
