"""Commands end bad input in one sentence."""

from typer.testing import CliRunner

from fgrpo_plugin.cli import app


def test_the_command_line_prints_one_sentence_and_exits_2():
    result = CliRunner().invoke(app, ["quickstart", "--divergence", "nope"])
    assert result.exit_code == 2
    assert result.stderr.startswith("fgrpo quickstart: DIVERGENCE=nope is not known; choose one of kl,")
    assert len(result.stderr.strip().splitlines()) == 1


def test_reading_preferences_says_how_far_it_is(tmp_path, monkeypatch):
    import json

    from fgrpo_plugin.preference import loading

    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{i}?", "chosen": "a", "rejected": "b"}) + "\n" for i in range(20)))
    quiet = CliRunner().invoke(app, ["prefs", "check", str(file)])
    assert quiet.exit_code == 0 and quiet.stderr == ""
    monkeypatch.setattr(loading, "SECONDS_BETWEEN_LINES", 0.0)
    for command in (["check", str(file)], ["convert", str(file), "--output", str(tmp_path / "rows.parquet")]):
        result = CliRunner().invoke(app, ["prefs", *command])
        assert result.exit_code == 0
        lines = [line for line in result.stderr.splitlines() if line]
        assert len(lines) == 20 and lines[-1].startswith("40 rows read, ")


def test_export_ends_bad_input_in_one_sentence_and_exits_1(tmp_path):
    for run, given in ((tmp_path / "none", []), (tmp_path, []), (tmp_path, ["--dtype", "int8"])):
        result = CliRunner().invoke(app, ["export", str(run), "-o", str(tmp_path / "model"), *given])
        assert result.exit_code == 1
        assert result.stderr.startswith("fgrpo export: ") and len(result.stderr.strip().splitlines()) == 1
        assert not (tmp_path / "model").exists()


def test_no_command_waits_for_another_ones_libraries():
    import subprocess
    import sys

    code = (
        "import sys, fgrpo_plugin.cli; print([name for name in ('torch', 'omegaconf', 'verl') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
