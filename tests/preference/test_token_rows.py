"""Rows in arrays are the rows that were put in, in memory and on disk."""

import numpy as np
import pytest

from fgrpo_plugin.preference.token_rows import Builder, TokenRow, TokenRows

ROWS = [
    TokenRow([1, 2], [3], True, "a", "f: row 0"),
    TokenRow([1, 2], [4, 5], False, "a", "f: row 0"),
    TokenRow([7], [8] * 300, True, None, "ü: row 1"),
    TokenRow([], [9], False, "b", "g: row 0"),
    TokenRow([5], [], True, "a", "g: row 1"),
]
NAMES = ("prompt_ids", "response_ids", "desirable", "pair", "source", "digest", "prompt_length", "response_length")


def same(rows, expected):
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        assert [getattr(row, name) for name in NAMES] == [getattr(other, name) for name in NAMES]
        assert row.ids.dtype == np.int32


def test_rows_come_back_as_they_were(tmp_path):
    rows = TokenRows.of(ROWS)
    same(rows, ROWS)
    assert TokenRows.of(rows) is rows
    assert rows[-1].source == "g: row 1" and rows[1].response_ids == [4, 5]
    with pytest.raises(IndexError):
        rows[5]
    rows.save(tmp_path)
    loaded = TokenRows.load(tmp_path)
    same(loaded, ROWS)
    assert isinstance(loaded.tokens, np.memmap)


def test_selected_rows_share_the_tokens():
    rows = TokenRows.of(ROWS)
    for indices in (np.array([3, 0]), np.array([True, False, False, True, False])):
        found = rows.select(indices)
        assert found.tokens is rows.tokens
        assert sorted(row.source for row in found) == ["f: row 0", "g: row 0"]
    same(rows[1:4], ROWS[1:4])
    same(rows.select(np.array([4, 2])).select(np.array([1])), [ROWS[2]])


def test_no_rows(tmp_path):
    rows = Builder().build()
    assert len(rows) == 0 and list(rows) == []
    rows.save(tmp_path)
    assert len(TokenRows.load(tmp_path)) == 0


def test_pairs_have_a_number_each():
    rows = TokenRows.of(ROWS)
    first, second, alone, other, third = rows.pairs.tolist()
    assert first == second == third != other and alone == -1 and other >= 0


def test_what_is_missing_on_disk_is_an_error(tmp_path):
    TokenRows.of(ROWS).save(tmp_path)
    (tmp_path / "pairs.npy").unlink()
    with pytest.raises(OSError):
        TokenRows.load(tmp_path)


def test_the_digest_is_of_the_tokens_and_of_where_the_response_begins():
    digests = {
        TokenRow(*ids, True, None, "").digest for ids in (([1], [2, 3]), ([1, 2], [3]), ([1], [2, 4]), ([], [1, 2, 3]))
    }
    assert len(digests) == 4
    assert TokenRow([1], [2], False, "a", "b").digest == TokenRow([1], [2], True, None, "").digest
