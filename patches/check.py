"""Apply a series of patches to a checkout of verl and run the tests that it brings.

    python patches/check.py --repo ~/verl                                 # patches/main on the checkout's HEAD
    python patches/check.py --repo ~/verl --series v0.9.1 --rev v0.9.1    # another series, on another commit
    python patches/check.py --repo ~/verl tests/trainer/ppo/test_core_algos_on_cpu.py    # tests of verl's own as well

The checkout stays as it is: a temporary clone of it is patched. The interpreter that runs this needs verl's own
dependencies and pytest; verl itself is taken from the clone. --shims shows as well that this package's shims are not
needed there and that 0006 and 0007 compute this package's losses; it takes the environment of `make env`. The exit
status is 1 where a patch does not apply, a test fails or one of these does not hold.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

PATCHES = Path(__file__).resolve().parent
SERIES = tuple(sorted(folder.name for folder in PATCHES.iterdir() if any(folder.glob("*.patch"))))
# Whatever the user's own git settings are.
SETTINGS = ("user.name=check", "user.email=check@localhost", "core.hooksPath=/dev/null", "commit.gpgSign=false")
SETTINGS += ("core.autocrlf=false", "apply.whitespace=nowarn")
ADDED_TEST = re.compile(r"^\+\+\+ b/(tests/\S+\.py)$", flags=re.MULTILINE)
SHIMS = 5  # the patches of a series that stand for a shim; what follows them is f-GRPO and f-HAL for verl
GAP = 1e-6  # relative difference of float32 sums taken in another order


def patches_of(series: str) -> list[Path]:
    """The patches of a series in their order.

    Raises:
        ValueError: no such series.
    """
    if series not in SERIES:
        raise ValueError(f"--series {series} is not known; choose one of {', '.join(SERIES)}.")
    return sorted((PATCHES / series).glob("*.patch"))


def tests_of(patches: list[Path]) -> list[str]:
    """Paths of the test files that the patches bring or extend, inside verl's repository."""
    return list(dict.fromkeys(path for patch in patches for path in ADDED_TEST.findall(patch.read_text())))


def apply(patches: list[Path], repo: Path, clone: Path, rev: str = "HEAD") -> str:
    """Clone a checkout and apply patches to the clone, one commit each.

    Args:
        repo: a git checkout (or bare repository) of verl; it is only read.
        clone: folder to create.
        rev: commit of `repo` to start from.

    Returns:
        The commit started from: hash, date and subject.

    Raises:
        ValueError: no repository, no such commit, or a patch that does not apply.
    """
    commit = git(repo, "rev-parse", "--verify", f"{rev}^{{commit}}", remedy="name a git checkout of verl and a commit")
    git(Path.cwd(), "clone", "-q", "--shared", "--no-checkout", str(repo), str(clone), remedy="free the folder")
    git(clone, "checkout", "-q", "--detach", commit, remedy="fetch that commit")
    for patch in patches:
        remedy = f"{patch.parent.name}/{patch.name} does not apply to this commit; patches/README.md names one"
        git(clone, "am", "-q", "--3way", "--keep-non-patch", str(patch), remedy=remedy)
    return git(clone, "log", "-1", "--format=%h of %cs, %s", commit)


def run_tests(tests: list[str], checkout: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run test files of a checkout of verl against that checkout, without any plugin of verl.

    Args:
        tests: paths inside the checkout.
        checkout: folder that holds `verl/` and `tests/`.
        options: further ones of pytest.
    """
    dropped = ("VERL_PLATFORM", "VERL_USE_EXTERNAL_MODULES")
    env = {name: value for name, value in os.environ.items() if name not in dropped}
    env |= {"PYTHONPATH": str(checkout), "VERL_USE_EXTERNAL_PLUGINS": "none"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", *options, *tests]
    return subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True)


def run_ours(module: str, host: Path | None = None, plugin: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a module of this repository against some verl.

    Args:
        module: its dotted name; it prints one line of JSON.
        host: folder that holds `verl/`; None is the installed one.
        plugin: whether verl loads this package.
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(str(path) for path in (PATCHES.parent, host) if path)}
    env |= {"VERL_PLATFORM": "cpu"} if plugin else {"VERL_USE_EXTERNAL_PLUGINS": "none", "VERL_PLATFORM": ""}
    command = [sys.executable, "-W", "ignore", "-m", module]
    return subprocess.run(command, cwd=PATCHES.parent, env=env, capture_output=True, text=True)


def check_shims(patches: list[Path], repo: Path, folder: Path, rev: str) -> bool:
    """Print what becomes of the shims and of the loss on the patched verl, and how far its own losses are off.

    Args:
        patches: a whole series.
        repo: a git checkout of verl; it is only read.
        folder: holds `verl/`, the checkout with all patches; `shims/` is made there.
        rev: commit of `repo` to start from.

    Returns:
        Whether no shim is needed, the loss is the same number and verl's own losses are this package's.

    Raises:
        ValueError: a patch does not apply, or this package does not run.
    """
    apply(patches[:SHIMS], repo, folder / "shims", rev)
    stock, patched = (_answer(run_ours("tests.support.shims_process", host)) for host in (None, folder / "shims"))
    states = patched["applied"] | {name: f"refused: {why}" for name, why in patched["refused"].items()}
    print("shims:", ", ".join(f"{name} {state}" for name, state in states.items()))
    off = len(patched["applied"]) == SHIMS and set(patched["applied"].values()) == {"not needed"}
    same = all(stock[key] == patched[key] for key in ("loss", "gradient", "fields"))
    print(f"loss {patched['loss']!r}, {'identical to' if same else 'NOT'} that of the installed verl with the shims")
    gaps = _answer(run_ours("tests.support.upstream_process", folder / "verl", plugin=False))["losses"].values()
    gap = max(max(entry.values()) for entry in gaps)
    print(f"0006, 0007: largest relative difference from this package's losses {gap:.1e}, bound {GAP:.0e}")
    return off and same and gap < GAP


def _answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    said = lines[-1] if lines else "it says nothing"
    if done.returncode:
        raise ValueError(f"{done.args[-1]} failed ({said[-300:]}); --shims needs the environment of `make env`.")
    return json.loads(said)


def git(folder: Path, *arguments: str, remedy: str = "report this") -> str:
    """What a git command says, under this module's settings.

    Raises:
        ValueError: it fails; the sentence begins with `remedy`.
    """
    settings = [part for setting in SETTINGS for part in ("-c", setting)]
    done = subprocess.run(["git", *settings, *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise ValueError(f"{remedy} (git {arguments[0]} in {folder}: {said[-300:]}).")
    return done.stdout.strip()


def main(
    repo: Annotated[
        Path, typer.Option(help="A git checkout of verl.", exists=True, file_okay=False, resolve_path=True)
    ],
    also: Annotated[list[str] | None, typer.Argument(help="Further test files of the checkout to run.")] = None,
    series: Annotated[str, typer.Option(help=f"One of {', '.join(SERIES)}.")] = "main",
    rev: Annotated[str, typer.Option(help="Commit to apply the series to.")] = "HEAD",
    shims: Annotated[bool, typer.Option("--shims", help="Try this package on the patched verl, too.")] = False,
) -> None:
    """Apply a series to a temporary clone of a verl checkout and run the tests that it brings."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "verl"
        try:
            patches = patches_of(series)
            commit = apply(patches, repo, clone, rev)
            print(f"{len(patches)} patches of {series} apply to {commit}", flush=True)
            done = run_tests([*tests_of(patches), *(also or [])], clone)
            print(done.stdout if done.returncode else done.stdout.strip().splitlines()[-1], flush=True)
            sys.stderr.write(done.stderr if done.returncode else "")
            held = check_shims(patches, repo, Path(folder), rev) if shims else True
        except ValueError as error:
            raise SystemExit(f"patches/check.py: {error}") from None
        raise SystemExit(done.returncode or int(not held))


if __name__ == "__main__":
    typer.run(main)
