"""Two-operand addition: prompts, a fixed held-out split, data files in verl's format, and the reward function.

The reward workers of verl import this module by path, so it needs nothing but the standard library at import.
"""

import hashlib
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

DATA_SOURCE = "fgrpo/addition"
# Two digits each: every digit then keeps its place in the prompt, which a tiny model learns in seconds.
OPERANDS = range(10, 100)
# One unordered pair in this many is held out.
HELDOUT_ONE_IN = 12
# Rows that validation samples greedily, before and after training.
HELDOUT_ROWS = 256


class Pair(NamedTuple):
    """Two operands in the order in which they are written."""

    a: int
    b: int

    @property
    def prompt(self) -> str:
        return f"{self.a}+{self.b}="

    @property
    def answer(self) -> str:
        return str(self.a + self.b)


def is_held_out(pair: Pair) -> bool:
    """Return whether a pair belongs to the held-out split, whatever the seed.

    The hash sees the unordered pair: 34+12 must not be trained on when 12+34 is asked later.
    """
    low, high = sorted(pair)
    digest = hashlib.sha256(f"{low}+{high}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELDOUT_ONE_IN == 0


def split_pairs() -> tuple[list[Pair], list[Pair]]:
    """All (train, held-out) pairs, in a fixed order."""
    pairs = [Pair(a, b) for a in OPERANDS for b in OPERANDS]
    return [p for p in pairs if not is_held_out(p)], [p for p in pairs if is_held_out(p)]


def heldout_sample(rows: int = HELDOUT_ROWS) -> list[Pair]:
    """The held-out pairs of the validation file: the same ones for every seed."""
    _, held_out = split_pairs()
    return random.Random(0).sample(held_out, min(rows, len(held_out)))


def wrong_answer(answer: str, rng: random.Random) -> str:
    """A wrong sum: the right one of another random pair, so that no single wrong answer is learned."""
    while True:
        other = str(rng.choice(OPERANDS) + rng.choice(OPERANDS))
        if other != answer:
            return other


def verl_rows(pairs: Iterable[Pair], split: str) -> list[dict[str, Any]]:
    """Rows with the columns that verl's dataset and reward managers read."""
    return [
        {
            "data_source": DATA_SOURCE,
            "prompt": [{"role": "user", "content": pair.prompt}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": pair.answer},
            "extra_info": {"split": split, "index": index},
        }
        for index, pair in enumerate(pairs)
    ]


def write_parquet(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Write verl rows as parquet: a row that lacks a column has a null there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    pq.write_table(pa.Table.from_pylist([{name: row.get(name) for name in columns} for row in rows]), path)
    return path


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **kwargs: Any
) -> float:
    """1.0 for the exact answer, else 0.0; the parameter names are the ones that verl calls with."""
    return 1.0 if solution_str.strip() == str(ground_truth).strip() else 0.0
