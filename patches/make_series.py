"""Make the series of patches for the pinned verl from that for verl's main; first move the latter to a newer commit.

    python -m patches.make_series                                   # the pinned release's from main/
    python -m patches.make_series --repo ~/verl --rev main          # first main/ on that commit, by three-way merge
    python -m patches.make_series --repo ~/verl --rev mine --edited # first main/ from the commits of a branch

main/ is the source; it is edited as pull requests are: `git am` it in a checkout of verl, change the commits, take them
with --edited. Two things differ for the installed release: it has no pages of verl's documentation, and what it needs
beyond main's changes stands in only_pinned/, a diff with the name of the patch that takes it in. Run in this
repository's root and environment.
"""

import os
import re
import shutil
import subprocess
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from fgrpo_plugin.pinned import VERL, VERL_MAIN_COMMIT
from patches import check

ONLY_PINNED = check.PATCHES / "only_pinned"
NOT_INSTALLED = ("docs/extend_guide.rst", "docs/index.rst")
"""Pages of verl that the patches change."""
FORMAT = ("--zero-commit", "--no-signature", "--full-index", "--no-renames", "--diff-algorithm=myers")
"""Of git format-patch: nothing in a patch tells when, where or by which version of git it was written."""


def installed_verl(folder: Path) -> Path:
    """A repository below `folder` whose one commit is a copy of the installed verl."""
    found = find_spec("verl")
    if found is None or found.origin is None or version("verl") != VERL:
        raise ValueError(f"install verl=={VERL}, to which its patches are fitted")
    copy = folder / "pristine"
    source = Path(found.origin).parent
    shutil.copytree(source, copy / "verl", ignore=shutil.ignore_patterns("__pycache__"))
    for command in (["init", "-q"], ["add", "-f", "."], ["commit", "-q", "--no-verify", "-m", "verl as installed"]):
        check.git(copy, *command)
    return copy


def for_installed(patches: list[Path], only: Path, pristine: Path) -> dict[str, bytes]:
    """The patches of main/ as they apply to an installed verl: name -> text.

    Args:
        patches: those of main/, in their order.
        only: folder of diffs, each with the name of the patch that it is added to.
        pristine: what `installed_verl` returns; it is left with the patches as commits.

    Raises:
        ValueError: something does not apply, or a diff belongs to no patch.
    """
    if lone := {path.stem for path in only.glob("*.diff")} - {patch.stem for patch in patches}:
        raise ValueError(f"no patch is called {', '.join(sorted(lone))}: rename its diff in {only.name}/")
    base = check.git(pristine, "rev-parse", "HEAD")
    # One line of context is enough for git to find a place, and tests/test_patches.py compares the changes.
    options = ("-C1", *(f"--exclude={page}" for page in NOT_INSTALLED), "--keep-non-patch")
    for patch in patches:
        remedy = f"{patch.name} of main/ does not apply to verl {VERL}; a change that it lacks goes into {only.name}/"
        check.git(pristine, "am", "-q", *options, str(patch), remedy=remedy)
        diff = only / f"{patch.stem}.diff"
        if diff.is_file():
            check.git(pristine, "apply", "--index", str(diff), remedy=f"{diff.name} does not apply after its patch")
            check.git(pristine, "commit", "-q", "--amend", "--no-edit", "--no-verify")
    return _written(pristine, base, [patch.name for patch in patches])


def on_main(patches: list[Path], repo: Path, rev: str, clone: Path) -> tuple[str, dict[str, bytes]]:
    """The patches of main/ on another commit of verl: that commit, and name -> text.

    Args:
        patches: those of main/, in their order.
        repo: a checkout of verl; it is only read.
        rev: its commit to put them on.
        clone: folder to create.

    Raises:
        ValueError: no such commit, or a patch does not merge.
    """
    commit = check.git(repo, "rev-parse", "--verify", f"{rev}^{{commit}}", remedy="name a git checkout and a commit")
    check.apply(patches, repo, clone, commit)
    return commit, _written(clone, commit, [patch.name for patch in patches], f"--base={commit}")


def from_commits(patches: list[Path], repo: Path, rev: str, clone: Path) -> dict[str, bytes]:
    """The patches of main/ as a branch has them: name -> text.

    Args:
        patches: those of main/, in their order; the branch has one commit for each.
        repo: a checkout of verl; it is only read.
        rev: the branch, which begins at the pinned commit of main.
        clone: folder to create.

    Raises:
        ValueError: no such branch, or it has another number of commits.
    """
    check.apply([], repo, clone, rev)
    return _written(clone, VERL_MAIN_COMMIT, [patch.name for patch in patches], f"--base={VERL_MAIN_COMMIT}")


def _written(repo: Path, base: str, names: list[str], *options: str) -> dict[str, bytes]:
    """What git writes of the commits since `base`, whatever the user's settings of git are."""
    found = check.git(repo, "rev-list", "--count", f"{base}..HEAD", remedy=f"begin the branch at {base}")
    if int(found) != len(names):
        raise ValueError(f"there are {found} commits since {base} for {len(names)} patches; one for each is wanted")
    env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = ["git", "format-patch", "-q", *FORMAT, *options, "-o", folder, f"{base}..HEAD"]
        subprocess.run(command, cwd=repo, env=env, check=True)
        files = sorted(Path(folder).iterdir())
        return {name: file.read_bytes() for name, file in zip(names, files, strict=True)}


def _write(series: str, texts: dict[str, bytes]) -> None:
    folder = check.PATCHES / series
    folder.mkdir(exist_ok=True)
    old = {path.name: path.read_bytes() for path in folder.glob("*.patch")}
    for name, text in texts.items():
        (folder / name).write_bytes(text)
    for name in old.keys() - texts.keys():  # of a patch that has another name now
        (folder / name).unlink()
    changed = sorted(name for name in old.keys() | texts.keys() if old.get(name) != texts.get(name))
    print(f"{series}/: {len(texts)} patches, changed: {', '.join(changed) or 'none'}")


def main(
    repo: Annotated[
        Path | None, typer.Option(help="A checkout of verl to put main/ on.", exists=True, resolve_path=True)
    ] = None,
    rev: Annotated[str, typer.Option(help="Commit or branch of that checkout.")] = "HEAD",
    edited: Annotated[bool, typer.Option("--edited", help="It holds the patches already, as edited commits.")] = False,
) -> None:
    """Write the pinned release's series anew from main/; with --repo, main/ before it."""
    try:
        if repo is None and (edited or rev != "HEAD"):
            raise ValueError("--edited and --rev say what is in a checkout of verl; name it with --repo")
        with tempfile.TemporaryDirectory() as folder:
            if repo is not None and edited:
                _write("main", from_commits(check.patches_of("main"), repo, rev, Path(folder) / "verl"))
            elif repo is not None:
                commit, texts = on_main(check.patches_of("main"), repo, rev, Path(folder) / "verl")
                _write("main", texts)
                if commit != VERL_MAIN_COMMIT:
                    date = check.git(repo, "show", "-s", "--format=%cs", commit)
                    print(f"main/ is for {commit} of {date} now: write both into fgrpo_plugin/pinned.py")
            pristine = installed_verl(Path(folder))
            _write(f"v{VERL}", for_installed(check.patches_of("main"), ONLY_PINNED, pristine))
    except ValueError as error:
        raise SystemExit(f"patches/make_series.py: {re.sub(r'[.]$', '', str(error))}.") from None


if __name__ == "__main__":
    typer.run(main)
