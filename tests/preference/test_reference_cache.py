"""Reference log-probs on disk: reused where nothing has changed, never where something has, and damage is seen."""

import errno
import hashlib
import json

import pytest
import torch

from fgrpo_plugin.preference.reference_cache import ReferenceCache, keys_in
from fgrpo_plugin.preference.tokens import TokenRow

KEY = {"reference": "abc", "temperature": 1.0}


def row(*response, prompt=(1, 2)):
    return TokenRow(list(prompt), list(response), True, None, "f: row 0")


def test_a_second_run_reads_what_the_first_has_written(tmp_path):
    first = ReferenceCache(tmp_path, KEY)
    first.add([row(3, 4), row(5)], [torch.tensor([-1.0, -2.0]), torch.tensor([-3.0])])
    second = ReferenceCache(tmp_path, KEY)
    assert second.was_loaded(row(5)) and second.was_loaded(row(3, 4)) and not first.was_loaded(row(3, 4))
    assert second.get(row(3, 4)).tolist() == [-1.0, -2.0] and second.get(row(5)).tolist() == [-3.0]
    assert second.get(row(4)) is None
    # Where the response begins is part of the row, and so is every token of the prompt.
    assert second.get(row(4, prompt=(1, 2, 3))) is None and second.get(row(3, 4, prompt=(1, 7))) is None


def test_the_folder_says_what_its_numbers_depend_on(tmp_path):
    cache = ReferenceCache(tmp_path, KEY)
    assert json.loads((cache.folder / "key.json").read_text()) == KEY


@pytest.mark.parametrize("change", [{"temperature": 0.7}, {"reference": "abd"}, {"dtype": "bf16"}])
def test_another_reference_or_temperature_never_reuses_it(tmp_path, change):
    ReferenceCache(tmp_path, KEY).add([row(5)], [torch.tensor([-3.0])])
    assert ReferenceCache(tmp_path, KEY).get(row(5)) is not None
    assert ReferenceCache(tmp_path, KEY | change).get(row(5)) is None


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_file_is_removed_and_its_rows_are_computed_anew(tmp_path, damage):
    cache = ReferenceCache(tmp_path, KEY)
    cache.add([row(5)], [torch.tensor([-3.0])])
    cache.add([row(6)], [torch.tensor([-4.0])])
    file = min(cache.folder.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[-1] ^= 1
    file.write_bytes({"cut": content[:-3], "flipped": content, "empty": b""}[damage])
    again = ReferenceCache(tmp_path, KEY)
    assert again.damaged == [file] and not file.exists()
    (lost,) = (one for one in (row(5), row(6)) if again.get(one) is None)
    again.add([lost], [torch.tensor([-9.0])])
    assert ReferenceCache(tmp_path, KEY).get(lost).tolist() == [-9.0]


def test_what_is_no_log_prob_of_the_row_is_refused(tmp_path):
    cache = ReferenceCache(tmp_path, KEY)
    for values in ([float("nan")], [-1.0, -2.0], []):
        with pytest.raises(ValueError, match="f: row 0"):
            cache.add([row(5)], [torch.tensor(values)])
    assert cache.get(row(5)) is None and ReferenceCache(tmp_path, KEY).get(row(5)) is None


def test_what_is_kept_is_no_view_of_the_pass_that_it_came_from(tmp_path):
    cache = ReferenceCache(tmp_path, KEY)
    padded = torch.full((2, 4096), -1.0)
    cache.add([row(3, 4), row(5)], [padded[0, :2], padded[1, :1]])
    padded.zero_()
    assert cache.get(row(3, 4)).tolist() == [-1.0, -1.0]
    assert [cache.get(one).untyped_storage().nbytes() for one in (row(3, 4), row(5))] == [8, 4]


def test_all_caches_of_a_folder_are_found_by_their_keys(tmp_path):
    other = KEY | {"temperature": 0.7}
    for key in (KEY, other):
        ReferenceCache(tmp_path, key).add([row(5)], [torch.tensor([-key["temperature"]])])
    (tmp_path / "tokens").mkdir()
    (tmp_path / "hashes.json").write_text("{}")
    found = keys_in(tmp_path)
    assert sorted(found, key=str) == sorted([KEY, other], key=str)
    values = sorted(float(ReferenceCache(tmp_path, key).get(row(5))) for key in found)
    assert values == pytest.approx([-1.0, -0.7])
    # A key that is not its folder's would open another cache; so would one that is damaged.
    file = ReferenceCache(tmp_path, other).folder / "key.json"
    for content in (json.dumps(KEY), "{", "[]", ""):
        file.write_text(content)
        assert keys_in(tmp_path) == [KEY]
    assert keys_in(tmp_path / "none") == []


def test_a_cache_that_is_there_is_read_without_being_written(tmp_path):
    """It may be another user's."""
    cache = ReferenceCache(tmp_path, KEY)
    cache.add([row(5)], [torch.tensor([-3.0])])
    file = cache.folder / "key.json"
    before = file.stat()
    again = ReferenceCache(tmp_path, KEY)
    assert again.get(row(5)) is not None
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    file.write_text("{}")
    ReferenceCache(tmp_path, KEY)
    assert json.loads(file.read_text()) == KEY


def test_a_file_of_another_references_folder_is_not_read(tmp_path):
    other = ReferenceCache(tmp_path, KEY | {"temperature": 0.7})
    other.add([row(5)], [torch.tensor([-3.0])])
    mine = ReferenceCache(tmp_path, KEY)
    (file,) = other.folder.glob("*.safetensors")
    copied = mine.folder / file.name
    copied.write_bytes(file.read_bytes())
    again = ReferenceCache(tmp_path, KEY)
    assert again.get(row(5)) is None and again.damaged == [copied] and not copied.exists()


def test_a_file_of_an_earlier_version_which_did_not_say_its_folder_is_read(tmp_path):
    from safetensors.torch import load, save

    cache = ReferenceCache(tmp_path, KEY)
    cache.add([row(5)], [torch.tensor([-3.0])])
    (file,) = cache.folder.glob("*.safetensors")
    content = save(load(file.read_bytes()))
    file.unlink()
    (cache.folder / f"{hashlib.sha256(content).hexdigest()}.safetensors").write_bytes(content)
    assert ReferenceCache(tmp_path, KEY).get(row(5)).tolist() == [-3.0]


def test_a_damaged_file_that_cannot_be_read_or_removed_is_named_and_not_used(tmp_path, monkeypatch):
    cache = ReferenceCache(tmp_path, KEY)
    cache.add([row(5)], [torch.tensor([-3.0])])
    (file,) = cache.folder.glob("*.safetensors")

    def fails(*args, **given):
        raise OSError(5, "Input/output error")

    read = type(file).read_bytes
    monkeypatch.setattr(type(file), "read_bytes", lambda path: fails() if path == file else read(path))
    monkeypatch.setattr(type(file), "unlink", fails)
    again = ReferenceCache(tmp_path, KEY)
    assert again.damaged == [file] and again.get(row(5)) is None


def test_where_it_can_only_be_read_new_rows_are_kept_for_the_run_and_said_once(tmp_path, monkeypatch, capsys):
    ReferenceCache(tmp_path, KEY).add([row(5)], [torch.tensor([-3.0])])
    cache = ReferenceCache(tmp_path, KEY)

    def refuse(*args):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("fgrpo_plugin.preference.reference_cache.write_whole", refuse)
    cache.add([row(6)], [torch.tensor([-4.0])])
    cache.add([row(7)], [torch.tensor([-5.0])])
    assert [cache.get(row(token)).tolist() for token in (5, 6, 7)] == [[-3.0], [-4.0], [-5.0]]
    said = capsys.readouterr().out
    assert said.count("WARNING") == 1 and "data.preference.cache_dir" in said and str(cache.folder) in said
    assert ReferenceCache(tmp_path, KEY).get(row(6)) is None


def test_a_full_disk_is_no_folder_that_may_only_be_read(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fgrpo_plugin.preference.reference_cache.write_whole", full)
    cache = ReferenceCache.__new__(ReferenceCache)
    cache.folder, cache._rows, cache._said = tmp_path, {}, False
    with pytest.raises(OSError, match="No space left"):
        cache.add([row(6)], [torch.tensor([-4.0])])
