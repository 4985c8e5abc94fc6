"""Preference rows as token ids: one row, and many of them in a few arrays, which may lie on disk."""

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

_ARRAYS = ("tokens", "starts", "lengths", "prompts", "desirable", "pairs", "digests", "texts", "text_ends", "sources")


class TokenRow:
    """A preference row in tokens: the prompt up to where the response begins, the response with the token that ends it.

    Attributes:
        ids: (prompt + response,) int32; a list of Python integers would take ten times the memory.
        prompt_length: tokens of the prompt.
        desirable: whether the row is of D+.
        pair: name of the pair that it is half of, or None.
        source: file and row, for messages.
        digest: SHA-256 of the tokens and of where the response begins: what a log-prob of the row depends on.
    """

    __slots__ = ("desirable", "digest", "ids", "pair", "prompt_length", "source")

    def __init__(
        self, prompt_ids: Sequence[int], response_ids: Sequence[int], desirable: bool, pair: str | None, source: str
    ):
        ids = np.concatenate([np.asarray(part, dtype=np.int64) for part in (prompt_ids, response_ids)])
        head = np.array([len(prompt_ids)], dtype=np.int64)
        self.ids = ids.astype(np.int32)
        self.prompt_length = len(prompt_ids)
        self.desirable = desirable
        self.pair = pair
        self.source = source
        self.digest = hashlib.sha256(head.tobytes() + ids.tobytes()).digest()

    @property
    def response_length(self) -> int:
        """Tokens of the response."""
        return len(self.ids) - self.prompt_length

    @property
    def prompt_ids(self) -> list[int]:
        """The prompt's tokens."""
        return self.ids[: self.prompt_length].tolist()

    @property
    def response_ids(self) -> list[int]:
        """The response's tokens."""
        return self.ids[self.prompt_length :].tolist()


class TokenRows(Sequence[TokenRow]):
    """Many rows, as arrays: what they take in memory is little where they lie on disk.

    Attributes:
        tokens: of all rows, int32.
        starts, lengths: (n,) int64, where a row begins among them, and how many are its own.
        prompts: (n,) int32, tokens of the prompt.
        desirable: (n,) bool.
        pairs: (n,) int64, a number for each pair; -1 where a row has no partner.
        digests: (n, 32) uint8.
    """

    def __init__(self, arrays: dict[str, np.ndarray]):
        self._arrays = arrays
        self.tokens, self.starts, self.lengths = arrays["tokens"], arrays["starts"], arrays["lengths"]
        self.prompts, self.desirable, self.pairs = arrays["prompts"], arrays["desirable"], arrays["pairs"]
        self.digests = arrays["digests"]

    @classmethod
    def of(cls, rows: Iterable[TokenRow]) -> "TokenRows":
        """Rows put into arrays; what is one already is returned as it is."""
        if isinstance(rows, cls):
            return rows
        builder = Builder()
        for row in rows:
            builder.add(row)
        return builder.build()

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> TokenRow: ...
    @overload
    def __getitem__(self, index: slice) -> "TokenRows": ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        row = TokenRow.__new__(TokenRow)
        start = int(self.starts[index])
        row.ids = np.asarray(self.tokens[start : start + int(self.lengths[index])])
        row.prompt_length = int(self.prompts[index])
        row.desirable = bool(self.desirable[index])
        pair = int(self.pairs[index])
        row.pair = self._text(pair) if pair >= 0 else None
        row.source = self._text(int(self._arrays["sources"][index]))
        row.digest = self.digests[index].tobytes()
        return row

    def __iter__(self) -> Iterator[TokenRow]:
        return (self[index] for index in range(len(self)))

    def select(self, indices: np.ndarray) -> "TokenRows":
        """The rows with these indices, or where a mask is true; tokens are not copied."""
        whole = ("tokens", "texts", "text_ends")
        return TokenRows({name: a if name in whole else a[indices] for name, a in self._arrays.items()})

    def save(self, folder: Path) -> None:
        """Write the arrays into an empty folder; `load` reads them."""
        for name, values in self._arrays.items():
            np.save(folder / f"{name}.npy", values, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> "TokenRows":
        """Rows that stay on disk until they are used.

        Raises:
            OSError, ValueError: a file is missing or damaged.
        """
        return cls({name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS})

    def _text(self, number: int) -> str:
        ends = self._arrays["text_ends"]
        begin = int(ends[number - 1]) if number else 0
        return self._arrays["texts"][begin : int(ends[number])].tobytes().decode()


class Builder:
    """Takes rows one by one and makes arrays of them."""

    def __init__(self) -> None:
        self._tokens, self._starts, self._lengths = array("i"), array("q"), array("q")
        self._prompts, self._desirable, self._pairs = array("i"), array("b"), array("q")
        self._digests, self._texts, self._text_ends, self._sources = bytearray(), bytearray(), array("q"), array("q")
        self._last = ("", -1)
        self._named: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, row: TokenRow) -> None:
        """Put a row at the end."""
        self._starts.append(len(self._tokens))
        self._lengths.append(len(row.ids))
        self._tokens.frombytes(row.ids.tobytes())
        self._prompts.append(row.prompt_length)
        self._desirable.append(row.desirable)
        self._digests += row.digest
        self._sources.append(self._source(row.source))
        self._pairs.append(-1 if row.pair is None else self._pair(row.pair))

    def build(self) -> TokenRows:
        """All rows that were added."""

        def of(values: Any, dtype: type) -> np.ndarray:
            return np.frombuffer(values, dtype=dtype) if len(values) else np.empty(0, dtype=dtype)

        return TokenRows(
            {
                "tokens": of(self._tokens, np.int32),
                "starts": of(self._starts, np.int64),
                "lengths": of(self._lengths, np.int64),
                "prompts": of(self._prompts, np.int32),
                "desirable": of(self._desirable, np.bool_),
                "pairs": of(self._pairs, np.int64),
                "digests": of(self._digests, np.uint8).reshape(-1, 32),
                "texts": of(self._texts, np.uint8),
                "text_ends": of(self._text_ends, np.int64),
                "sources": of(self._sources, np.int64),
            }
        )

    def _source(self, text: str) -> int:
        if text != self._last[0]:
            self._last = (text, self._add_text(text))
        return self._last[1]

    def _pair(self, name: str) -> int:
        key = hashlib.blake2b(name.encode(), digest_size=12).digest()
        if key not in self._named:
            self._named[key] = self._last[1] if name == self._last[0] else self._add_text(name)
        return self._named[key]

    def _add_text(self, text: str) -> int:
        self._texts += text.encode()
        self._text_ends.append(len(self._texts))
        return len(self._text_ends) - 1
