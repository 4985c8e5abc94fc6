"""What a list of files says of a folder that has changed since."""

import json

import pytest

from fgrpo_plugin import manifest
from fgrpo_plugin.manifest import MANIFEST, damage, mark_unfinished, read_manifest, write_manifest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "actor").mkdir()
    (tmp_path / "actor" / "model.pt").write_bytes(bytes(range(200)))
    (tmp_path / "data.pt").write_bytes(b"data")
    (tmp_path / f".{'0' * 32}").write_bytes(b"a part that a killed writer has left")
    write_manifest(tmp_path, kept={"step": 3})
    return tmp_path


def test_an_unchanged_folder_is_whole_and_what_is_not_listed_does_not_count(folder):
    assert damage(folder) is None and read_manifest(folder) == {"step": 3}
    assert sorted(json.loads((folder / MANIFEST).read_text())["files"]) == ["actor/model.pt", "data.pt"]
    (folder / "notes.txt").write_text("later")
    (folder / f".{'0' * 32}").unlink()
    assert damage(folder) is None
    assert damage(folder / "actor") is None and read_manifest(folder / "actor") is None  # without a list


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda file: file.unlink(), "actor/model.pt is missing"),
        (lambda file: file.write_bytes(b""), "actor/model.pt has 0 bytes and had 200 when it was written"),
        (lambda file: file.write_bytes(bytes(range(199))), "actor/model.pt has 199 bytes and had 200"),
        (lambda file: file.write_bytes(bytes(200)), "actor/model.pt has another content than was written"),
    ],
)
def test_a_changed_file_is_named_with_what_has_changed(folder, change, said):
    change(folder / "actor" / "model.pt")
    assert damage(folder).startswith(said)
    assert damage(folder, lambda name: not name.startswith("actor/")) is None


def test_a_file_that_cannot_be_read_is_named(folder, monkeypatch):
    (folder / "data.pt").unlink()
    (folder / "data.pt").mkdir()
    assert damage(folder) == "data.pt cannot be read (Is a directory)"


def test_of_a_large_file_the_size_and_both_ends_count(folder, monkeypatch):
    monkeypatch.setattr(manifest, "ENDS", 10)
    file = folder / "actor" / "model.pt"
    write_manifest(folder, whole=199)
    content = bytearray(file.read_bytes())
    for place, seen in ((9, True), (190, True), (10, False), (189, False)):
        changed = content.copy()
        changed[place] ^= 1
        file.write_bytes(changed)
        assert (damage(folder) is not None) is seen, place
    write_manifest(folder, whole=200)
    file.write_bytes(content)
    assert damage(folder) is not None
    write_manifest(folder, whole=None)
    assert damage(folder) is None


def test_bounds_of_what_is_read_whole():
    assert (manifest.WHOLE, manifest.ENDS) == (64 * 2**20, 2**20)


def test_a_folder_that_is_being_written_is_damaged_until_its_files_are_listed(folder):
    mark_unfinished(folder)
    begun = json.loads((folder / MANIFEST).read_text())
    assert {name: begun[name] for name in begun if name != "sha256"} == {"whole": None, "files": None, "kept": {}}
    assert damage(folder) == "its files were still being written when the run ended"
    write_manifest(folder)
    assert damage(folder) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sha256": 1}', "\x00" * 30, "[" * 100_000])
def test_a_damaged_list_is_damage(folder, content):
    (folder / MANIFEST).write_text(content)
    assert damage(folder) == f"{MANIFEST}, the list of its files, is damaged"
    with pytest.raises(ValueError, match="the list of its files, is damaged"):
        read_manifest(folder)


def test_a_list_with_one_other_digit_is_damaged(folder):
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"step": 3', '"step": 4'))
    assert damage(folder) == f"{MANIFEST}, the list of its files, is damaged"
