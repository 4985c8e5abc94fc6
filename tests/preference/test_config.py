"""Where preference rows come from: ranges and defaults of the settings, and data that are the same under two names."""

import pytest

from fgrpo_plugin.preference.config import PreferenceConfig


def test_what_is_at_the_edge_of_a_range_is_allowed():
    assert PreferenceConfig(files=["a"], on_bad_row="skip").on_bad_row == "skip"
    for choice in ("error", "drop", "truncate"):
        assert PreferenceConfig(files=["a"], on_too_long=choice, batch_size=2).on_too_long == choice


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"files": []}, "files is empty"),
        ({"files": ["a"], "val_files": ["a"], "val_split": "train"}, "trained on too"),
        ({"files": ["a.jsonl"], "val_files": ["./a.jsonl"]}, "trained on too"),
        ({"files": [1]}, "must be a list of files"),
        ({"files": ["a" * 5000]}, r"^files: 'a{199} cannot be looked for \(File name too long\); correct the name\.$"),
        ({"files": ["a"], "val_files": ["a" * 5000]}, "^val_files: 'a{199} cannot be looked for"),
        ({"files": ["~" + "a" * 5000]}, r"^files: '~a{198} cannot be looked for \(~a{199}: the home .* not known"),
        ({"files": ["/\0"]}, r"^files: '/\\x00' cannot be looked for \(embedded null byte\); correct the name\.$"),
        ({"files": ["~nobody_of_this_name/a"]}, "^files: '~nobody_of_this_name/a' cannot be looked for"),
        (
            {"files": ["a"], "val_files": ["~nobody_of_this_name/a"]},
            r"^val_files: '~nobody_of_this_name/a' cannot be looked for \(.*the home folder that it names is not known",
        ),
        ({"files": ["a"], "split": ["b" * 500]}, r"^split=\['b{198} must be the name of a split\.$"),
        ({"files": ["a"], "columns": ["b" * 500]}, r"^columns=\['b{198} must name columns"),
        ({"files": ["a"], "split": None}, "split=None"),
        ({"files": ["a"], "keep_pairs": "maybe"}, "keep_pairs='maybe'"),
        ({"files": ["a"], "seed": True}, "seed=True"),
        ({"files": ["a"], "batch_size": 1}, "batch_size=1"),
        ({"files": ["a"], "on_bad_row": "maybe"}, "on_bad_row='maybe'"),
        ({"files": ["a"], "on_too_long": "cut"}, "on_too_long='cut'"),
        ({"files": ["a"], "seed": -1}, "seed=-1"),
        ({"files": ["a"], "on_templated": "maybe"}, "on_templated='maybe'"),
        ({"files": ["a"], "config": 1}, "config=1"),
        (
            {"files": ["a"], "columns": ["prompt"]},
            r"columns=\['prompt'\] must name columns, for example \{prompt: question",
        ),
        ({"files": ["a"], "columns": {"prompt": 1}}, "prompt must be a column, a list of columns, or null"),
        ({"files": ["a"], "columns": {"prompt": ["a", 1]}}, "prompt must be a column, a list of columns, or null"),
        ({"files": ["a"], "columns": {"prompt": []}}, "prompt must be a column, a list of columns, or null"),
        (
            {"files": ["a"], "columns": {"scores": "model_ranks"}},
            r"the smallest of ranks is the best; name them \{ranks: model",
        ),
        ({"files": ["a"], "columns": {"promt": "question"}}, "no format reads 'promt'; known are prompt, "),
    ],
)
def test_bad_preference_settings_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        PreferenceConfig(**settings)


def test_one_file_and_two_splits_of_one_dataset_are_allowed():
    assert PreferenceConfig(files="one.jsonl").files == ["one.jsonl"]
    PreferenceConfig(files=["a/hub-name"], val_files=["a/hub-name"])  # train and test of one dataset
    # A path that is missing, and the dataset of that name: the first is refused where it is read.
    PreferenceConfig(files=["./a/hub-name"], val_files=["a/hub-name"], val_split="train")


def test_columns_are_named_joined_or_left_out():
    columns = {"prompt": ["a", "b"], "chosen": "x", "whatever": None}
    assert PreferenceConfig(files=["a"], columns=columns).columns == columns
    assert PreferenceConfig(files=["a"], columns={}).columns is None


def test_a_file_of_a_folder_that_is_trained_on_is_not_held_out(tmp_path):
    for name in ("hh_train.jsonl", "hh_test.jsonl"):
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match="trained on too"):
        PreferenceConfig(files=[str(tmp_path)], val_files=[str(tmp_path / "hh_test.jsonl")])
    with pytest.raises(ValueError, match="trained on too"):
        PreferenceConfig(files=[str(tmp_path / "hh_test.jsonl")], val_files=[str(tmp_path)])


def test_a_link_to_itself_is_named(tmp_path):
    link = tmp_path / "rows.jsonl"
    link.symlink_to(link)
    with pytest.raises(ValueError, match=r"^files: '.*rows\.jsonl' cannot be looked for \(Symlink loop .*\); correct"):
        PreferenceConfig(files=[str(link)])


def test_a_folder_of_files_has_no_splits_and_a_saved_dataset_has(tmp_path):
    for name in ("files", "saved"):
        (tmp_path / name).mkdir()
    (tmp_path / "saved" / "dataset_dict.json").write_text("{}")
    files, saved = str(tmp_path / "files"), str(tmp_path / "saved")
    PreferenceConfig(files=[saved], val_files=[saved])  # train and test
    with pytest.raises(ValueError, match="trained on too"):
        PreferenceConfig(files=[saved], val_files=[saved + "/"], val_split="train")
    with pytest.raises(ValueError, match="trained on too"):
        PreferenceConfig(files=[files], val_files=[files])


def test_the_defaults_are_the_documented_ones():
    """tests/test_docs.py holds the page against these."""
    preference = PreferenceConfig(files=["a"])
    assert not preference.keep_pairs and not preference.keep_rollout and preference.seed == 0
