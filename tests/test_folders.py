"""Which files a folder or a name stands for, and whether two names stand for the same data."""

import os
import time
from pathlib import Path

import pytest

from fgrpo_plugin import folders
from fgrpo_plugin.folders import files_of, identity, kind_ending, split_of


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("")
    return str(folder)


def test_a_folder_of_one_kind_and_one_split_is_its_files(tmp_path):
    folder = touch(tmp_path, "b.jsonl", "a.json", "c.jsonl.gz", "readme.md", ".hidden.jsonl")
    assert files_of(folder) == [f"{folder}/a.json", f"{folder}/b.jsonl", f"{folder}/c.jsonl.gz"]
    touch(tmp_path, "c.parquet")
    with pytest.raises(ValueError, match=r"^the folder holds files of several kinds; name the files$"):
        files_of(folder)
    with pytest.raises(ValueError, match=r"^the folder holds no data files; name the files$"):
        files_of(touch(tmp_path / "empty"))
    for place in ("owner/name", str(tmp_path / "a.json")):
        assert files_of(place) == [place]


@pytest.mark.parametrize(
    "names",
    [
        ("train-0.parquet", "Validation.parquet"),
        ("hh_train.jsonl", "hh_test.jsonl"),
        ("prefs.jsonl", "test.jsonl"),
        ("prefs.jsonl", "prefs-held-out.jsonl"),
        ("a.train.jsonl.gz", "a.dev.jsonl.gz"),
    ],
)
def test_a_folder_of_several_splits_is_refused(names, tmp_path):
    with pytest.raises(
        ValueError, match=r"^the folder holds several splits \(.*\), of which some may be meant for valid"
    ):
        files_of(touch(tmp_path, *names))


def test_of_a_snapshot_of_the_hub_the_split_is_chosen(tmp_path):
    shards = [f"{split}-0000{i}-of-00002.parquet" for split in ("train", "test") for i in range(2)]
    touch(tmp_path, "README.md")
    touch(tmp_path / "data", *shards)
    for split in ("train", "test"):
        expected = [str(tmp_path / "data" / name) for name in shards if name.startswith(split)]
        assert files_of(str(tmp_path), split) == expected
    with pytest.raises(ValueError, match=r"^it has the splits test, train, not 'validation'; set SPLIT$"):
        files_of(str(tmp_path), "validation", split_setting="SPLIT")
    one = tmp_path / "one"
    touch(one, "train-00000-of-00001.parquet")
    assert len(files_of(str(one), "train")) == 1


def test_splits_of_a_snapshot_have_any_name(tmp_path):
    names = ("train_prefs", "train_sft", "test_prefs")
    touch(tmp_path, "dataset_infos.json")
    touch(tmp_path / "data", *(f"{name}-00000-of-00001.parquet" for name in names))
    for name in names:
        assert files_of(str(tmp_path), name) == [str(tmp_path / "data" / f"{name}-00000-of-00001.parquet")]
    for wanted in ("train", "nonsense"):
        with pytest.raises(
            ValueError, match=r"^it has the splits test_prefs, train_prefs, train_sft, not '.*'; set --split$"
        ):
            files_of(str(tmp_path), wanted)
    raw = touch(tmp_path / "raw", "raw-00000-of-00001.parquet", "filtered-00000-of-00001.parquet")
    assert len(files_of(raw, "filtered")) == 1
    with pytest.raises(ValueError, match="it has the splits filtered, raw, not 'train'"):
        files_of(raw)


@pytest.mark.parametrize("name", ["test-00000-of-00001.parquet", "test.jsonl", "x_val.jsonl"])
def test_a_folder_of_held_out_files_is_not_trained_on(name, tmp_path):
    folder = touch(tmp_path, name)
    with pytest.raises(ValueError, match=r"its files are named (test|validation), not 'train'; name the files"):
        files_of(folder)
    assert files_of(folder, "test") == [f"{folder}/{name}"]


def test_a_folder_that_describes_its_files_is_no_saved_dataset(tmp_path):
    folder = touch(tmp_path, "dataset_info.json", "prefs.json")
    assert files_of(folder) == [f"{folder}/prefs.json"]


def test_folders_in_a_folder_are_configurations(tmp_path):
    for name in ("harmless", "helpful"):
        touch(tmp_path / name, "train.jsonl.gz")
    with pytest.raises(
        ValueError, match=r"^the folder holds the folders harmless, helpful; set CONFIG to one of them$"
    ):
        files_of(str(tmp_path), config_setting="CONFIG")
    assert files_of(str(tmp_path), config="helpful") == [str(tmp_path / "helpful" / "train.jsonl.gz")]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("x_train.jsonl", "train"),
        ("hh-test-v2.jsonl.gz", "test"),
        ("prefsVal.jsonl", None),
        ("prefs.val.jsonl", "validation"),
        ("held_out.parquet", "test"),
        ("heldout.parquet", "test"),
        ("holdout.parquet", "test"),
        ("dev.json", "validation"),
        ("eval_0.json", "validation"),
        ("train_of_test.json", "test"),
        ("contest.json", None),
        ("strain.json", None),
        ("evaluate.json", None),
    ],
)
def test_the_split_is_a_word_of_the_name(name, split, tmp_path):
    assert split_of(tmp_path / name) == split


def test_names_are_the_same_where_the_data_are(tmp_path):
    folder = touch(tmp_path / "prefs", "a.jsonl", "b.jsonl")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "prefs" / "b.jsonl")
    of_folder = identity(folder, "train")
    assert of_folder & identity(f"{folder}/b.jsonl", "test") and of_folder & identity(str(tmp_path / "link.jsonl"), "x")
    assert of_folder == identity(f"{folder}/../prefs", "train")
    assert not of_folder & identity(f"{folder}/c.jsonl", "train")
    touch(tmp_path / "snap" / "data", "train-0-of-1.parquet", "test-0-of-1.parquet")
    snap = str(tmp_path / "snap")
    assert not identity(snap, "train") & identity(snap, "test")
    assert identity(snap, "train") & identity(f"{snap}/data/train-0-of-1.parquet", "test")
    mixed = touch(tmp_path / "mixed", "x_train.jsonl", "x_test.jsonl")  # refused where it is read
    assert identity(mixed, "train") & identity(f"{mixed}/x_test.jsonl", "test")
    assert identity("owner/name", "train") != identity("owner/name", "test") != identity("owner/name", "test", "c")
    saved = tmp_path / "saved"
    touch(saved, "dataset_dict.json")
    touch(saved / "train", "data-0.arrow")
    assert identity(str(saved), "train") & identity(str(saved / "train" / "data-0.arrow"), "test")
    assert not identity(str(saved), "train") & identity(str(saved), "test")


def test_the_ending_tells_the_kind_of_compressed_files_too(tmp_path):
    for name, kind in (
        ("a.jsonl.gz", ".jsonl"),
        ("a.json.zst", ".json"),
        ("a.parquet", ".parquet"),
        ("a.csv.gz", ".gz"),
    ):
        assert kind_ending(tmp_path / name) == kind


def test_what_could_not_be_written_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "state"
    folders.write_whole(file, b"old")
    order = []
    monkeypatch.setattr(folders.os, "fsync", lambda number: order.append("synced"))
    replace = folders.os.replace
    monkeypatch.setattr(folders.os, "replace", lambda *names: (order.append("renamed"), replace(*names)))
    folders.write_whole(file, b"new")
    assert order == ["synced", "renamed"] and file.read_bytes() == b"new"

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        folders.write_whole(file, b"newer")
    assert [path.name for path in tmp_path.iterdir()] == ["state"] and file.read_bytes() == b"new"


def test_what_a_killed_writer_has_left_is_removed_once_it_is_old(tmp_path):
    old, folder, young, other = (tmp_path / name for name in (f".{'a' * 32}", f".{'b' * 32}", f".{'c' * 32}", ".keep"))
    for file in (old, young, other):
        file.write_bytes(b"half")
    folder.mkdir()
    (folder / "tokens.npy").write_bytes(b"half")
    for file in (old, folder, other):
        os.utime(file, (time.time() - 3700,) * 2)
    os.utime(young, (time.time() - 3500,) * 2)  # somebody may still be writing it
    folders.write_whole(tmp_path / "state", b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([young.name, ".keep", "state"])
    assert folders.is_part(young) and not folders.is_part(other)


def test_a_home_folder_that_nobody_knows_is_a_reason(monkeypatch):
    import pwd

    with pytest.raises(ValueError, match=r"^~nosuchuser/x: the home folder that it names is not known"):
        folders.expanded("~nosuchuser/x")

    def no_name(number):
        raise KeyError(number)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", no_name)
    with pytest.raises(ValueError, match=r"^~/x: the home folder that it names is not known; write the whole path$"):
        folders.files_of("~/x")
    assert folders.expanded("x/~") == Path("x/~")
