"""Which preference rows come next: seeded, balanced, and resumable from a few numbers."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from fgrpo_plugin.preference.token_rows import TokenRow, TokenRows


class PreferenceSampler:
    """Draws as many D+ as D- rows, neither repeated before all of its kind have been drawn.

    An epoch of a side is a permutation that follows from seed, side and epoch: the state is how many have been drawn.

    Args:
        rows: all rows.
        seed: of the permutations.
        keep_pairs: draw whole pairs in place of desirable and undesirable rows by themselves.

    Raises:
        ValueError: no desirable or no undesirable rows, or ``keep_pairs`` with rows that are not in such pairs.
    """

    def __init__(self, rows: Sequence[TokenRow], *, seed: int, keep_pairs: bool = False):
        self._seed = seed
        self._keep_pairs = keep_pairs
        rows = TokenRows.of(rows)
        self._data = _fingerprint(rows)
        self._units = _pairs(rows) if keep_pairs else _sides(rows)
        self._drawn = [0] * len(self._units)
        self._kept: dict[int, tuple[int, np.ndarray]] = {}
        self._history = ""

    def __len__(self) -> int:
        """Return twice the number of the scarcer kind of rows: after so many rows that kind has been drawn once."""
        return 2 * min(len(units) for units in self._units)

    def draw(self, count: int) -> list[int]:
        """The next ``count`` rows, D+ and D- in turn (pair by pair with ``keep_pairs``): indices into the rows.

        Raises:
            ValueError: an odd count, or more than there are rows to draw without repetition.
        """
        if count < 2 or count % 2:
            raise ValueError(f"count={count} must be an even number >= 2: half of it for each side")
        if count > len(self):
            raise ValueError(
                f"data.preference.batch_size={count} is more than the preference data hold without repetition "
                f"({len(self) // 2} of the scarcer kind); lower it to {len(self)} or less, or add data."
            )
        drawn = [self._next(side, count // 2) for side in range(len(self._units))]
        indices = [index for units in zip(*drawn, strict=True) for unit in units for index in unit]
        self._history = hashlib.sha256(f"{self._history}{indices}".encode()).hexdigest()
        return indices

    def epochs(self) -> float:
        """Return how often the scarcer kind of rows has been drawn whole."""
        return max(drawn / len(units) for drawn, units in zip(self._drawn, self._units, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs, as JSON holds it; ``history`` is a hash of every row drawn, in order."""
        return {
            "seed": self._seed,
            "keep_pairs": self._keep_pairs,
            "data": self._data,
            "drawn": list(self._drawn),
            "history": self._history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was taken.

        Raises:
            ValueError: the state belongs to other data, another seed or another way to draw, or is damaged.
        """
        for name, mine in (("data", self._data), ("seed", self._seed), ("keep_pairs", self._keep_pairs)):
            if state.get(name) != mine:
                raise ValueError(
                    f"the checkpoint's preference sampler was made with another data.preference.{name} "
                    f"({state.get(name)!s:.12} there, {mine!s:.12} here), so its place in the data means nothing "
                    "here; resume with the same preference data and settings, or start a new run from the weights."
                )
        drawn, history = state.get("drawn"), state.get("history")
        if not isinstance(history, str) or not isinstance(drawn, list) or len(drawn) != len(self._units):
            raise ValueError("the checkpoint's preference sampler is damaged: it does not say what was drawn.")
        if not all(type(count) is int and count >= 0 for count in drawn) or len(set(drawn)) != 1:
            raise ValueError(f"the checkpoint's preference sampler is damaged: it says that {drawn} rows were drawn.")
        self._drawn, self._history = list(drawn), history

    def _next(self, side: int, count: int) -> list[list[int]]:
        units, first = self._units[side], self._drawn[side]
        self._drawn[side] += count
        found: list[list[int]] = []
        while len(found) < count:
            epoch, place = divmod(first + len(found), len(units))
            rest = count - len(found)
            found += units[self._order(side, epoch)[place : place + rest]].tolist()
        return found

    def _order(self, side: int, epoch: int) -> np.ndarray:
        """The permutation of an epoch, kept while it lasts: making it takes time that grows with the data."""
        if self._kept.get(side, (None,))[0] != epoch:
            order = np.random.default_rng([self._seed, side, epoch]).permutation(len(self._units[side]))
            self._kept[side] = (epoch, order)
        return self._kept[side][1]


def _sides(rows: TokenRows) -> list[np.ndarray]:
    """For each side the indices of its rows, (n, 1)."""
    sides = [np.flatnonzero(rows.desirable == side)[:, None] for side in (True, False)]
    for units, name in zip(sides, ("desirable (D+)", "undesirable (D-)"), strict=True):
        if not len(units):
            raise ValueError(f"data.preference.files: no {name} rows; both kinds are needed, add data of that kind.")
    return sides


def _pairs(rows: TokenRows) -> list[np.ndarray]:
    """The indices of each pair's desirable and undesirable row, (n, 2), in the order of the pairs' first rows."""
    order = np.lexsort((~rows.desirable, rows.pairs))
    pairs, desirable = rows.pairs[order], rows.desirable[order]
    names, first, counts = np.unique(pairs, return_index=True, return_counts=True)
    both = (counts == 2) & (names >= 0)
    whole = first[both]
    both[both] = desirable[whole] & ~desirable[whole + 1]
    if not both.all():
        row = rows[int(order[first[~both][0]])]
        raise ValueError(
            f"data.preference.keep_pairs=true, but {row.source} is not half of a pair of one "
            "desirable and one undesirable row; set it to false."
        )
    found = np.stack([order[first], order[first + 1]], axis=1)
    return [found[np.argsort(found.min(axis=1))]]


def _fingerprint(rows: TokenRows) -> str:
    found = hashlib.sha256()
    for begin in range(0, len(rows), 1 << 16):
        part = slice(begin, begin + (1 << 16))
        side = rows.desirable[part].astype(np.uint8)[:, None]
        found.update(np.concatenate([rows.digests[part], side], axis=1).tobytes())
    return found.hexdigest()
