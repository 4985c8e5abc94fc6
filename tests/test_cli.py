"""Commands end bad input in one sentence."""

from typer.testing import CliRunner

from fgrpo_plugin.cli import app


def test_the_command_line_prints_one_sentence_and_exits_2():
    result = CliRunner().invoke(app, ["quickstart", "--divergence", "nope"])
    assert result.exit_code == 2
    assert result.stderr.startswith("fgrpo quickstart: DIVERGENCE=nope is not known; choose one of kl,")
    assert len(result.stderr.strip().splitlines()) == 1
