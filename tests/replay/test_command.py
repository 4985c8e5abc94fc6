"""The command: its exit code says whether the update is not finite here either."""

import pytest
from typer.testing import CliRunner

from fgrpo_plugin.cli import app
from fgrpo_plugin.host.replay_rows import pack
from tests.replay.test_recompute import saved_by


@pytest.mark.parametrize("bad", [False, True])
def test_the_exit_code_is_1_where_it_is_reproduced(tmp_path, bad):
    saved = saved_by(spoil=lambda given: given["ref_log_prob"].__setitem__((1, 0), float("nan")) if bad else None)[1]
    file = tmp_path / "step_1_rank_0.safetensors"
    file.write_bytes(pack(saved.rows, saved.about))
    result = CliRunner().invoke(app, ["replay", str(file)])
    assert result.exit_code == int(bad) and ("1 rows are not finite" in result.stdout) == bad
    doubled = CliRunner().invoke(app, ["replay", str(file), "--float64"])
    assert doubled.exit_code == int(bad) and "computed again in float64" in doubled.stdout


def test_a_file_that_cannot_be_read_is_one_sentence_and_exit_code_2(tmp_path):
    for file in (tmp_path / "none.safetensors", tmp_path):
        result = CliRunner().invoke(app, ["replay", str(file)])
        assert result.exit_code == 2
        assert result.stderr.startswith("fgrpo replay: ") and len(result.stderr.strip().splitlines()) == 1
