"""Compare what this package touches in verl with every release that it takes and with verl's main: docs/versions.md.

    python -m patches.versions --main ~/verl --write          # a git checkout of verl; the releases are downloaded
    python -m patches.versions --verl 0.9.0=/folder           # a release that is there already, nothing is written
    python -m patches.versions --main ~/verl --rev 1dda039    # another commit than its HEAD

What is touched is found by `verl_symbols.py`, not listed. verl's source is read without importing it; then, unless
--no-shims, this package's shims and loss are tried on each, in the environment of `make env`. The exit status is 1
where a release lacks a symbol, has a source that nobody has read, or computes another loss.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
import yaml

from fgrpo_plugin.host.contract import REPLACED_SOURCES, USED_SOURCES
from fgrpo_plugin.pinned import VERL, VERL_ALSO, VERL_MAIN_COMMIT
from patches import check
from patches.verl_source import VerlSource
from patches.verl_symbols import Symbols

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, PAGE = ROOT / "fgrpo_plugin", ROOT / "docs" / "versions.md"
TEMPLATE = ROOT / "docs" / "make" / "versions.template.md"
"""What stands above the tables."""
READ = ROOT / "patches" / "read_sources.yaml"
"""Symbol -> first 12 digits of the hash of a source that somebody has read -> what differs and what follows."""
RELEASES = (*VERL_ALSO, VERL)
SAME, KNOWN, NOT_READ, MISSING = "same", "known", "other, not read", "missing"
TABLE = "| {} |"


@dataclass
class Comparison:
    """What became of every symbol, setting and metric in some verls.

    Args:
        labels: name of each verl, for the heading of its column.
    """

    labels: list[str]
    rows: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """symbols, settings, metrics -> name -> one state for each verl."""
    notes: dict[str, dict[str, str]] = field(default_factory=dict)
    """symbol -> what was read in a source that differs -> in which verls."""


def compare(symbols: Symbols, verls: dict[str, VerlSource], read: dict[str, dict[str, str]]) -> Comparison:
    """Look up everything that is touched in each verl.

    Args:
        symbols: of this package, in the pinned verl.
        verls: label -> source.
        read: what `READ` holds.
    """
    found = Comparison(list(verls))
    found.rows["symbols"] = {
        symbol: [state(symbol, symbols.verl, verl, read) for verl in verls.values()]
        for symbol in sorted(symbols.symbols)
    }
    found.rows["settings"] = {
        key: [_setting(key, symbols.verl, verl, read) for verl in verls.values()] for key in sorted(symbols.settings)
    }
    found.rows["metrics"] = {
        name: [SAME if f'"{name}"' in verl.text else MISSING for verl in verls.values()]
        for name in sorted(symbols.metrics)
    }
    for name, texts in read.items():
        for label, verl in verls.items():
            said = texts.get(_read_as(name, verl))
            if said and name in found.rows["symbols"] | found.rows["settings"]:
                before = found.notes.setdefault(name, {}).get(said)
                found.notes[name][said] = f"{before}, {label}" if before else label
    return found


def state(symbol: str, pinned: VerlSource, verl: VerlSource, read: dict[str, dict[str, str]]) -> str:
    """What a symbol is in a verl: there with the pinned one's source, with another that is known or not, or missing."""
    text = verl.find(symbol)
    if text is not None and text == pinned.find(symbol):
        return SAME
    if _read_as(symbol, verl) in read.get(symbol, {}):
        return f"{KNOWN}: not there" if text is None else KNOWN
    if text is None:
        return MISSING
    # By the source alone: a name that is imported elsewhere is another symbol.
    return (
        KNOWN if any(verl.hash(symbol) in hashes for hashes in (REPLACED_SOURCES | USED_SOURCES).values()) else NOT_READ
    )


def _setting(key: str, pinned: VerlSource, verl: VerlSource, read: dict[str, dict[str, str]]) -> str:
    known = _read_as(key, verl) in read.get(key, {})
    if key not in verl.settings:
        return f"{KNOWN}: not there" if known else MISSING
    now, then = (json.dumps(each.settings[key]) for each in (verl, pinned))
    return SAME if now == then else f"{KNOWN if known else NOT_READ}: default {now}, pinned {then}"


def _read_as(name: str, verl: VerlSource) -> str:
    """By what the file of read sources knows what a name is in a verl."""
    if ":" not in name and name.split(".")[0] != "verl":
        return f"default {json.dumps(verl.settings[name])}" if name in verl.settings else MISSING
    return MISSING if verl.find(name) is None else (verl.hash(name) or "")[:12]


def page(found: Comparison, shims: dict[str, str]) -> str:
    """The page of docs/.

    Args:
        found: what `compare` gives.
        shims: label -> what became of the shims and the loss there; may be empty.
    """
    head, rule = (
        TABLE.format(" | ".join(["", *found.labels])),
        TABLE.format(" | ".join(["---"] * (1 + len(found.labels)))),
    )
    counts = []
    for what in (SAME, KNOWN, NOT_READ, MISSING):
        columns = zip(*(states for part in found.rows.values() for states in part.values()), strict=True)
        numbers = [str(sum(each.startswith(what) for each in column)) for column in columns]
        counts.append(TABLE.format(" | ".join([what, *numbers])))
    states = [TABLE.format(" | ".join(["shims, loss", *(shims.get(label, "not tried") for label in found.labels)]))]
    differs = [
        _row(name, states) for part in found.rows.values() for name, states in part.items() if set(states) != {SAME}
    ]
    notes = [
        f"| `{symbol}` | {where} | {said} |" for symbol, all_ in found.notes.items() for said, where in all_.items()
    ]
    full = []
    for title, part in found.rows.items():
        full += [f"### {title.capitalize()}", "", head, rule, *(_row(name, row) for name, row in part.items()), ""]
    lines = [
        TEMPLATE.read_text().replace("{VERL}", VERL).replace("{ALSO}", " and ".join(VERL_ALSO)),
        *("## The sum", "", head, rule, *counts, *states, ""),
        *("## What differs", "", head, rule, *differs, ""),
        *(
            "## What was read of it",
            "",
            "| symbol | in | what differs, what follows |",
            "| --- | --- | --- |",
            *notes,
            "",
        ),
        *("## Everything", "", *full),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _row(name: str, states: list[str]) -> str:
    return TABLE.format(" | ".join([f"`{name}`", *states]))


def downloaded(release: str, folder: Path) -> Path:
    """A folder with the wheel of a release in it, from the package index.

    Raises:
        ValueError: it cannot be had.
    """
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), f"verl=={release}"]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob(f"verl-{release}-*.whl"))
    if done.returncode or not wheels:
        raise ValueError(f"verl {release} cannot be downloaded; name a folder with it by --verl {release}=FOLDER.")
    zipfile.ZipFile(wheels[0]).extractall(folder / release)
    return folder / release


def try_shims(verls: dict[str, VerlSource]) -> dict[str, str]:
    """What becomes of this package's shims and loss on each verl, in processes of their own."""
    answers = {}
    for label, verl in verls.items():
        done = check.run_ours("tests.support.shims_process", verl.folder)
        answers[label] = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None
    pinned = answers.get(VERL)
    said = {}
    for label, answer in answers.items():
        if answer is None:
            said[label] = "does not run"
        elif answer["refused"]:
            said[label] = "refused: " + ", ".join(sorted(answer["refused"]))
        else:
            same = pinned and all(answer[key] == pinned[key] for key in ("loss", "gradient", "fields"))
            applied = sum(state == "applied" for state in answer["applied"].values())
            said[label] = f"{applied} applied, {'the same loss' if same else 'another loss'}"
    return said


def failures(found: Comparison, shims: dict[str, str]) -> list[str]:
    """What keeps a release from being taken; verl's main is only told of."""
    wrong = []
    for column, label in enumerate(found.labels):
        if label not in RELEASES:
            continue
        for part in found.rows.values():
            wrong += [
                f"{label}: {name}: {row[column]}"
                for name, row in part.items()
                if row[column].startswith((MISSING, NOT_READ))
            ]
        if shims and "the same loss" not in shims[label]:
            wrong.append(f"{label}: shims: {shims[label]}")
    return wrong


def main(
    verl: Annotated[list[str] | None, typer.Option(help="RELEASE=FOLDER, a verl that is there.")] = None,
    main: Annotated[Path | None, typer.Option(help="A git checkout of verl, for its main.")] = None,
    rev: Annotated[str, typer.Option(help="The commit of --main.")] = VERL_MAIN_COMMIT,
    shims: Annotated[bool, typer.Option(help="Also run the shims and the loss on each.")] = True,
    write: Annotated[bool, typer.Option("--write", help="Write docs/versions.md.")] = False,
) -> None:
    """Compare what this package touches in verl with each release that it takes, and with verl's main."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            if write and main is None:
                raise ValueError("--write wants --main: the page has verl's main.")
            given = dict(each.split("=", 1) for each in verl or [])
            verls = {name: VerlSource(Path(given.get(name) or downloaded(name, folder))) for name in RELEASES}
            if main is not None:
                commit = check.apply([], main.resolve(), folder / "main", rev)
                verls[f"main at {commit.split(',')[0]}"] = VerlSource(folder / "main")
        except ValueError as error:
            raise SystemExit(f"patches/versions.py: {error}") from None
        found = compare(Symbols(PACKAGE, verls[VERL]), verls, yaml.safe_load(READ.read_text()))
        states = try_shims(verls) if shims else {}
    text = page(found, states)
    print(text.partition("## What was read of it")[0])
    if write:
        PAGE.write_text(text)
    wrong = failures(found, states)
    print("\n".join(wrong) if wrong else f"verl {', '.join(RELEASES)}: everything is there, and read where it differs")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    typer.run(main)
