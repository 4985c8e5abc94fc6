"""What commands share: checks in one sentence each, who samples, and tables."""

from pathlib import Path

import pytest

from fgrpo_plugin.eval import options
from fgrpo_plugin.eval.sampling import Engine, Sampling
from fgrpo_plugin.terminal import Terminal

GIVEN = {"k": [1, 2], "samples": 2, "limit": None, "base": None, "server": "http://x/v1", "engine": Engine()}


@pytest.mark.parametrize(
    "changed, why",
    [
        ({"k": [3]}, "--k 3 must lie between 1 and --samples 2"),
        ({"k": [0]}, "--k 0 must lie between"),
        ({"limit": 0}, "--limit 0 must be 1 or more"),
        ({"base": "b"}, "--base b is none of the models a"),
        ({"engine": Engine(dtype="float16")}, "are the server's own; leave them out"),
        ({"server": None, "engine": Engine(tensor_parallel=0)}, "--tensor-parallel 0 must be 1 or more"),
        ({"server": None, "engine": Engine(chat_template=Path("none"))}, "--chat-template none: there is no such file"),
        ({"server": None}, "MODEL org/a: there is no such folder; give a local Hugging Face folder, or --server"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(tmp_path, changed, why):
    options.check({"a": "org/a"}, tmp_path, **GIVEN)
    with pytest.raises(ValueError, match=why):
        options.check({"a": "org/a"}, tmp_path, **GIVEN | changed)


def test_a_command_without_servers_names_none():
    with pytest.raises(ValueError, match=r"MODEL org/a: there is no such folder; give a local Hugging Face folder\.$"):
        options.check_folder("org/a", "MODEL", None)


def test_an_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"--output .*file is a file; name a folder"):
        options.check({"a": "a"}, tmp_path / "file", **GIVEN)


def test_a_server_or_vllm_here_samples(tmp_path, monkeypatch):
    how, engine, follow = Sampling(), Engine("float16"), print
    monkeypatch.setattr(options, "server_responses", lambda *given, **more: (given, more))
    monkeypatch.setattr(options, "responses", lambda *given, **more: (given, more))
    asked = options.sampler("http://x/v1", how, engine)("org/a", {}, tmp_path, follow)
    assert asked == (("http://x/v1", "org/a", {}, tmp_path, how), {"on_progress": follow})
    (folder, *rest), more = options.sampler(None, how, engine)("~/a", {}, tmp_path, follow)
    assert folder == Path.home() / "a" and rest == [{}, tmp_path, how]
    assert more == {"engine": engine, "on_progress": follow}


def test_tables_are_printed_and_kept(tmp_path):
    console = Terminal(width=120, record=True)
    text = options.show_table("a title", ["set", "n"], [["x", "1"]], console)
    options.write_tables([text, text], tmp_path, console)
    assert (
        tmp_path / "table.md"
    ).read_text() == "| set | n |\n| --- | --- |\n| x | 1 |\n\n| set | n |\n| --- | --- |\n| x | 1 |\n"
    said = console.export_text()
    assert "a title" in said and "table.md" in said and "bootstrap over prompts" in said
