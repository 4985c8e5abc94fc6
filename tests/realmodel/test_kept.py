"""What a folder was begun with is kept whole, added to, and not gone on with for anything else."""

import json

import pytest

from fgrpo_plugin.realmodel.kept import PROBLEMS, keep
from fgrpo_plugin.realmodel.options import RealModelError


def test_the_same_is_taken_and_what_is_not_there_yet_is_added(tmp_path):
    file = tmp_path / "inputs.json"
    keep(file, {"STEPS": 3})
    written = file.stat().st_mtime_ns
    keep(file, {"STEPS": 3})
    assert file.stat().st_mtime_ns == written
    keep(file, {"STEPS": 3, PROBLEMS: "abc"})
    keep(file, {"STEPS": 3})
    assert json.loads(file.read_text()) == {"STEPS": 3, PROBLEMS: "abc"} and list(tmp_path.iterdir()) == [file]


def test_another_value_is_refused_and_what_was_there_stays(tmp_path):
    file = tmp_path / "inputs.json"
    keep(file, {"DATA": [], PROBLEMS: "abc"})
    for given, words in (
        ({"DATA": ["a"], PROBLEMS: "abc"}, r"was begun with DATA=its default; for \['a'\] name another RUN\.$"),
        ({"DATA": [], PROBLEMS: "abd"}, r"was begun with other problems: DATA has changed; name another RUN\.$"),
    ):
        with pytest.raises(RealModelError, match=words):
            keep(file, given)
    assert json.loads(file.read_text()) == {"DATA": [], PROBLEMS: "abc"}


@pytest.mark.parametrize("content", ['{"STEPS": ', "[]", ""])
def test_a_spoilt_file_is_named(tmp_path, content):
    (tmp_path / "inputs.json").write_text(content)
    with pytest.raises(RealModelError, match=r"inputs\.json is spoilt, .*; name another RUN\.$"):
        keep(tmp_path / "inputs.json", {"STEPS": 3})
