"""docs/versions.md has a row for everything that this package touches in verl, and its words are earned."""

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from fgrpo_plugin.host.contract import REPLACED_SOURCES, USED_SOURCES
from fgrpo_plugin.pinned import VERL, VERL_ALSO, VERL_MAIN_COMMIT, VERL_MAIN_DATE
from patches import versions
from patches.verl_source import VerlSource
from patches.verl_symbols import DUCKS, Symbols

PAGE = versions.PAGE.read_text()


@pytest.fixture(scope="module")
def touched() -> Symbols:
    return Symbols(versions.PACKAGE, VerlSource(Path(find_spec("verl").origin).parents[1]))


def _rows(title: str) -> dict[str, list[str]]:
    part = re.split(r"^##+ ", PAGE.partition(f"\n### {title}\n")[2], flags=re.MULTILINE)[0]
    rows = [line.strip("|").split(" | ") for line in part.splitlines() if line.startswith("| `")]
    assert rows, title
    return {name.strip(" `"): [cell.strip() for cell in cells] for name, *cells in rows}


def test_everything_that_is_touched_has_its_row(touched):
    for title, found in (("Symbols", touched.symbols), ("Settings", touched.settings), ("Metrics", touched.metrics)):
        new, gone = found.keys() - _rows(title).keys(), _rows(title).keys() - found.keys()
        assert not new and not gone, f"run `python -m patches.versions --main ... --write`: {new}, {gone}"
    assert (REPLACED_SOURCES | USED_SOURCES).keys() <= touched.symbols.keys()
    assert all(any(name.endswith(f".{duck}") for name in touched.symbols) for duck in DUCKS)
    assert len(touched.symbols) > 150 and len(touched.settings) > 150


def test_the_page_has_every_release_and_the_main_with_its_date():
    labels = [*VERL_ALSO, VERL, f"main at {VERL_MAIN_COMMIT[:9]} of {VERL_MAIN_DATE}"]
    assert f"| {' | '.join(['', *labels])} |".replace("|  |", "|  |") in PAGE
    rows = {**_rows("Symbols"), **_rows("Settings"), **_rows("Metrics")}
    assert all(len(row) == len(labels) and row[labels.index(VERL)] == versions.SAME for row in rows.values())
    assert not [name for name, row in rows.items() if row[0].startswith((versions.MISSING, versions.NOT_READ))]
    (tried,) = re.findall(r"^\| shims, loss \|(.*)\|$", PAGE, flags=re.MULTILINE)
    assert tried.count("5 applied, the same loss") == len(labels)


def test_what_was_read_is_of_something_touched_and_on_the_page(touched):
    read = versions.yaml.safe_load(versions.READ.read_text())
    assert read.keys() <= touched.symbols.keys() | touched.settings.keys()
    assert all(said.replace("\n", " ") in PAGE for texts in read.values() for said in texts.values())


@pytest.fixture
def verls(tmp_path):
    """A pinned verl, one with another source and default, one without the name."""
    for name, module, setting in (
        ("pinned", "def f():\n    return 1\n", "trainer:\n  key: 1\n"),
        ("other", 'def f():\n    return "a/b"\n', "trainer:\n  key: 2\n"),
        ("without", "", "trainer: {}\n"),
    ):
        (tmp_path / name / "verl/trainer/config").mkdir(parents=True)
        (tmp_path / name / "verl/__init__.py").write_text(module)
        (tmp_path / name / "verl/m.py").write_text(module)
        (tmp_path / name / "verl/trainer/config/_generated_ppo_trainer.yaml").write_text(setting)
    return {name: VerlSource(tmp_path / name) for name in ("pinned", "other", "without")}


def _compare(verls, read):
    symbols = SimpleNamespace(
        verl=verls["pinned"], symbols={"verl.m:f": {"x"}}, settings={"trainer.key": {"x"}}, metrics={"a/b": {"x"}}
    )
    return versions.compare(symbols, verls, read)


def test_the_states_of_what_nobody_has_read(verls):
    found = _compare(verls, {})
    assert found.rows["symbols"]["verl.m:f"] == ["same", "other, not read", "missing"]
    assert found.rows["settings"]["trainer.key"] == ["same", "other, not read: default 2, pinned 1", "missing"]
    assert found.rows["metrics"]["a/b"] == ["missing", "same", "missing"] and not found.notes


def test_the_states_of_what_was_read_and_where_it_is_said(verls, monkeypatch):
    digest = verls["other"].hash("verl.m:f")
    read = {
        "verl.m:f": {digest[:12]: "a text", "missing": "no need of it"},
        "trainer.key": {"default 2": "twice", "missing": "none"},
    }
    found = _compare(verls, read)
    assert found.rows["symbols"]["verl.m:f"] == ["same", "known", "known: not there"]
    assert found.rows["settings"]["trainer.key"] == ["same", "known: default 2, pinned 1", "known: not there"]
    assert found.notes["verl.m:f"] == {"a text": "other", "no need of it": "without"}
    text = versions.page(found, {"other": "5 applied"})
    assert "| `verl.m:f` | other | a text |" in text and "| shims, loss | not tried | 5 applied | not tried |" in text
    assert "| same | 2 | 1 | 0 |" in text and "| known | 0 | 2 | 2 |" in text and "| missing | 1 | 0 | 1 |" in text
    monkeypatch.setitem(USED_SOURCES, "verl.elsewhere:f", {digest: "other"})
    assert _compare(verls, {}).rows["symbols"]["verl.m:f"][1] == "known"


def test_a_release_is_not_taken_with_something_missing_unread_or_with_another_loss():
    labels = [VERL_ALSO[0], VERL, "main"]
    found = versions.Comparison(
        labels, {"symbols": {"a": ["missing", "same", "missing"], "b": ["known", "same", "same"]}}
    )
    assert versions.failures(found, {}) == [f"{VERL_ALSO[0]}: a: missing"]
    found.rows = {"settings": {"k": ["same", "other, not read: default 1, pinned 2", "missing"]}}
    assert versions.failures(found, {}) == [f"{VERL}: k: other, not read: default 1, pinned 2"]
    states = {VERL_ALSO[0]: "5 applied, another loss", VERL: "5 applied, the same loss", "main": "does not run"}
    found.rows = {}
    assert versions.failures(found, states) == [f"{VERL_ALSO[0]}: shims: 5 applied, another loss"]


def test_the_loss_of_each_is_compared_with_the_pinned_ones(verls, monkeypatch):
    answer = {"loss": 1.5, "gradient": [1], "fields": {}, "refused": {}, "applied": {"a": "applied", "b": "not needed"}}
    given = {
        "pinned": answer,
        "other": answer | {"loss": 1.25},
        "without": answer | {"refused": {"trainer_mode": "no"}},
    }

    def run(module, folder):
        return SimpleNamespace(returncode=0, stdout="said before\n" + json.dumps(given[Path(folder).name]) + "\n")

    monkeypatch.setattr(versions.check, "run_ours", run)
    monkeypatch.setattr(versions, "VERL", "pinned")
    assert versions.try_shims(verls) == {
        "pinned": "1 applied, the same loss",
        "other": "1 applied, another loss",
        "without": "refused: trainer_mode",
    }
    monkeypatch.setattr(versions.check, "run_ours", lambda *given: SimpleNamespace(returncode=1, stdout=""))
    assert set(versions.try_shims(verls).values()) == {"does not run"}


def _app():
    app = versions.typer.Typer()
    app.command()(versions.main)
    return app


def test_the_command_reads_folders_and_says_what_is_wrong(verls, tmp_path, monkeypatch):
    monkeypatch.setattr(
        versions,
        "Symbols",
        lambda package, verl: SimpleNamespace(verl=verl, symbols={"verl.m:f": {"x"}}, settings={}, metrics={}),
    )
    monkeypatch.setattr(versions, "downloaded", lambda release, folder: pytest.fail("nothing is downloaded"))
    given = ["--no-shims", "--verl", f"{VERL}={tmp_path / 'pinned'}", "--verl"]
    done = CliRunner().invoke(_app(), [*given, f"{VERL_ALSO[0]}={tmp_path / 'pinned'}"])
    assert done.exit_code == 0 and "everything is there, and read where it differs" in done.output
    done = CliRunner().invoke(_app(), [*given, f"{VERL_ALSO[0]}={tmp_path / 'other'}"])
    assert done.exit_code == 1 and f"{VERL_ALSO[0]}: verl.m:f: other, not read" in done.output
    shutil.rmtree(tmp_path / "other")
    done = CliRunner().invoke(_app(), [*given, f"{VERL_ALSO[0]}={tmp_path / 'other'}"])
    assert done.exit_code == 1 and "holds no verl/" in str(done.output)


def test_the_page_is_not_written_without_verls_main():
    done = CliRunner().invoke(_app(), ["--write"])
    assert done.exit_code == 1 and "--write wants --main: the page has verl's main." in str(done.output)


def test_a_wheel_is_unpacked_and_a_release_that_cannot_be_had_is_named(tmp_path, monkeypatch):
    import zipfile

    def pip(command, **options):
        with zipfile.ZipFile(tmp_path / "verl-1.2.3-py3-none-any.whl", "w") as wheel:
            wheel.writestr("verl/__init__.py", "")
        assert command[-1] == "verl==1.2.3"
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(versions.subprocess, "run", pip)
    assert (versions.downloaded("1.2.3", tmp_path) / "verl/__init__.py").is_file()
    monkeypatch.setattr(versions.subprocess, "run", lambda *given, **options: SimpleNamespace(returncode=1))
    with pytest.raises(
        ValueError, match=r"verl 9\.9\.9 cannot be downloaded; name a folder with it by --verl 9\.9\.9="
    ):
        versions.downloaded("9.9.9", tmp_path)
