"""The mathematics imports torch and nothing of verl, so it can be read, tested and used without it."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = ("verl", "ray", "vllm", "transformers", "hydra")
MATHEMATICS = (
    "fgrpo_plugin",
    "fgrpo_plugin.divergences",
    "fgrpo_plugin.advantages",
    "fgrpo_plugin.losses",
    "fgrpo_plugin.theory",
    "fgrpo_plugin.eval.separation",
)


def imported_hosts(modules, *paths):
    """Which forbidden packages a fresh interpreter holds after importing the modules."""
    program = (
        f"import importlib, sys; sys.path[:0] = {[str(path) for path in paths]!r}\n"
        f"for module in {list(modules)!r}: importlib.import_module(module)\n"
        f"print(*sorted({{name.split('.')[0] for name in sys.modules}} & {set(FORBIDDEN)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.split()


def test_mathematics_imports_no_host():
    assert imported_hosts(MATHEMATICS, ROOT) == []


def test_only_the_hosts_folder_names_the_host():
    """Elsewhere not even inside a function, so that one folder is to be looked through for a new version of it."""
    pattern = re.compile(r"^\s*(?:from|import) (?:verl|ray|vllm)\b", flags=re.MULTILINE)
    files = [path for path in (ROOT / "fgrpo_plugin").rglob("*.py") if "host" not in path.parts]
    found = [path.relative_to(ROOT / "fgrpo_plugin") for path in files if pattern.search(path.read_text())]
    assert found == [Path("eval/sampling.py")]  # vLLM by itself, in a process of its own
    assert not re.search(r"(?:from|import) (?:verl|ray)\b", (ROOT / "fgrpo_plugin" / found[0]).read_text())
    assert pattern.search("def f():\n    import verl.utils\n")


def test_what_only_reads_data_and_settings_is_beside_the_hosts_folder():
    """verl's checks are passed in, so that these can be read and used without them."""
    pattern = re.compile(r"^\s*(?:from|import) fgrpo_plugin\.host\b", flags=re.MULTILINE)
    package = ROOT / "fgrpo_plugin"
    files = [package / f"{name}.py" for name in ("config", "typed_settings", "tables", "folders")]
    files += [path for folder in ("data", "preference") for path in (package / folder).rglob("*.py")]
    assert len(files) > 10 and [path.name for path in files if pattern.search(path.read_text())] == []
    assert pattern.search("def f():\n    from fgrpo_plugin.host.settings.inputs import check_model\n")
    alone = subprocess.run(
        [sys.executable, "-c", "import sys, fgrpo_plugin.tables; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout.split()
    assert {name for name in alone if name.startswith("fgrpo_plugin")} == {
        "fgrpo_plugin",
        "fgrpo_plugin.folders",
        "fgrpo_plugin.tables",
    }


def test_the_check_can_fail(tmp_path):
    (tmp_path / "verl").mkdir()
    (tmp_path / "verl" / "__init__.py").write_text("")
    (tmp_path / "leaky.py").write_text("import verl\n")
    assert imported_hosts(("leaky",), tmp_path) == ["verl"]
