"""The tree says what is where: sizes of modules, a test file of each module's name, and walls that can fall."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fgrpo_plugin"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)
LONGEST, LONGEST_OF_HOST = 350, 300
# Modules with logic whose tests stand elsewhere, and why.
ELSEWHERE = {
    "host/cpu/worker.py": (
        "e2e/test_host.py",
        "vLLM's worker process imports it, so a run through Ray and vLLM is its test",
    ),
}


def _has_logic(path: Path) -> bool:
    return any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(ast.parse(path.read_text()))
    )


def _test_file(module: Path) -> Path:
    """Where the tests of a module are looked for; a package's own are in its folder, under the package's name."""
    place = module.relative_to(PACKAGE)
    name = place.parent.name if place.stem == "__init__" else place.stem
    return Path("tests") / place.parent / f"test_{name}.py"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_is_long_and_each_with_logic_has_tests_of_its_name(module):
    place = str(module.relative_to(PACKAGE))
    lines = len(module.read_text().splitlines())
    assert lines <= (LONGEST_OF_HOST if place.startswith("host/") else LONGEST)
    if _has_logic(module):
        expected = Path("tests") / ELSEWHERE[place][0] if place in ELSEWHERE else _test_file(module)
        assert (ROOT / expected).is_file(), f"{place} has no {expected}"
        assert "def test_" in (ROOT / expected).read_text(), f"{expected} holds no test"


def test_the_first_page_is_short_and_verl_is_called_verl():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    texts = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").rglob("*.md")]
    texts += [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".yaml")]
    found = [
        text for path in texts for text in re.findall(r"\bthe host(?:'s)?\b", path.read_text(), flags=re.IGNORECASE)
    ]
    assert len(found) <= 20  # each of them the machine beside its devices


def test_no_exception_has_outlived_its_reason():
    for place in ELSEWHERE:
        assert (PACKAGE / place).is_file() and not (ROOT / _test_file(PACKAGE / place)).is_file(), place


@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("divergences.py", "import fgrpo_plugin.config\n"),
        ("config.py", "import fgrpo_plugin.preference.files\n"),
        ("host/settings/layout.py", "import fgrpo_plugin.plan.configuration\n"),
        ("host/worker/policy_loss.py", "import fgrpo_plugin.host.driver.rows\n"),
        ("new_room.py", ""),
    ],
)
def test_a_planted_arrow_that_points_up_or_a_room_without_a_place_is_refused(tmp_path, module, planted):
    shutil.copytree(PACKAGE, tmp_path / "fgrpo_plugin", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "fgrpo_plugin" / module).open("a") as source:
        source.write(planted)
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 1 and ("BROKEN" in done.stdout or "new_room" in done.stdout + done.stderr), done.stdout
