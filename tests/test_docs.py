"""The pages that are made from the code say what the code says now, and have their pictures."""

import importlib.util
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
WRITTEN = ("*.md", "docs/*.md", "recipes/*/*.md", "experiments/*/*.md", "patches/**/*.md")
PAGES = [page for pattern in WRITTEN for page in DOCS.parent.glob(pattern)]
NUMBER = re.compile(r"\d+\.?\d*")


@pytest.mark.parametrize("name", ["commands", "concepts", "divergences", "lambda", "metrics", "theory"])
def test_made_page_is_current(name, tmp_path):
    module = maker(name)
    text, made = (DOCS / f"{name}.md").read_text(), module.page()
    assert NUMBER.sub("#", made) == NUMBER.sub("#", text), f"run `make docs`: docs/{name}.md is out of date"
    # Another processor's rounding may move a last digit, or a start that falls by hardly more than 1e-12.
    for now, then in zip(NUMBER.findall(made), NUMBER.findall(text), strict=True):
        assert float(now) == pytest.approx(float(then), rel=0.02, abs=0.002 if "." in then else 1)
    assert "!" not in re.sub(r"!\[", "[", text)  # the sign with which a table marks a statement that does not hold
    module.draw(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(re.findall(r"\(figures/([^)]+)\)", text))


def maker(name: str):
    """A script of docs/make as a module."""
    spec = importlib.util.spec_from_file_location(f"make_{name}", DOCS / "make" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_measured_tables_are_those_of_the_results():
    measured = maker("measured")
    for name in measured.PAGES:
        text = (DOCS.parent / name).read_text()
        assert measured.BLOCK.search(text) and measured.filled(text) == text, f"run `make docs`: {name} is out of date"
        # What is changed by hand is set right.
        assert measured.filled(measured.BLOCK.sub(lambda block: block[1] + "| by hand |" + block[3], text)) == text


def test_the_tables_of_engines_are_made_of_what_their_tests_measured():
    engines = maker("engines")
    for file, text in engines.tables(json.loads(engines.FIGURES.read_text())).items():
        assert (engines.HERE / file).read_text() == text, "run `make docs`"


def test_the_readmes_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", (DOCS.parent / "README.md").read_text(), flags=re.DOTALL)
    names: dict = {}
    exec(example, names)
    gradient = names["log_prob"].grad
    assert gradient[1].sum() < 0 < gradient[0].sum()  # the good row goes up, the bad one down


def test_the_tables_of_settings_are_made_of_their_fields():
    from fgrpo_plugin.config import FDivergenceConfig
    from fgrpo_plugin.preference.config import PreferenceConfig

    settings = maker("settings")
    texts = [(DOCS.parent / name).read_text() for name in settings.PAGES]
    for name, text in zip(settings.PAGES, texts, strict=True):
        assert settings.filled(text) == text, f"run `make docs`: {name} is out of date"
        # What is changed by hand is set right.
        assert settings.filled(settings.BLOCK.sub(lambda block: block[1] + "| by hand |" + block[3], text)) == text
    found = {block[2]: block[0].splitlines() for text in texts for block in settings.BLOCK.finditer(text)}
    assert found.keys() == settings.TABLES.keys()
    for table, cls in (("settings", FDivergenceConfig), ("preference", PreferenceConfig)):
        named = {line.split("`")[1]: line for line in found[table] if line.startswith("| `")}
        assert list(named) == [field.name for field in fields(cls) if field.name != "old_log_prob"]
        assert all(len(re.split(r"(?<!\\)\|", line)) == 5 and not line.endswith("|  |") for line in named.values())
    rows = "\n".join(found["settings"])
    assert "| `beta` | 0.1 | Scale of log(pi/pi_ref)" in rows and "| `lam` | 0.5 for `f_hal` | " in rows
    assert "0.0 (`stable`, `paper`), 1.0 (`released`) |" in rows and "`jeffreys`, `alpha` |" in rows
    assert "| `lam` | 0.5 for `f_hal` | " in found["both halves"][3] and len(found["both halves"]) == 6


def test_the_table_of_presets_is_that_of_the_code():
    from fgrpo_plugin.config import PRESETS

    table = re.search(r"^\| preset \|(.*?)\n\n", (DOCS / "assumptions.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    names, _, *rows = (
        [cell.strip(" `") for cell in line.strip("|").split("|")] for line in table[0].strip().splitlines()
    )
    documented = {row[0]: dict(zip(names[1:-1], row[1:-1], strict=True)) for row in rows}
    assert documented == {
        preset: {name: f"{value:g}" if name == "gamma" else value for name, value in values.items()}
        for preset, values in PRESETS.items()
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS.parent)))
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


OURS = re.compile(r"`((?:fgrpo_plugin|benchmarks|experiments|recipes|tests|docs/make)/[\w./]+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS.parent)))
def test_paths_that_are_named_exist(page):
    if "pull_requests" in page.parts:  # they speak of verl's tree
        return
    for name in OURS.findall(page.read_text()):
        assert (DOCS.parent / name).exists(), name


def test_a_page_names_paths():
    assert len(OURS.findall((DOCS / "house.md").read_text())) > 10


def test_the_formats_of_preference_data_are_those_of_the_readers():
    from fgrpo_plugin.preference import readers

    page = (DOCS / "preference_data.md").read_text()
    table = [line for line in readers.__doc__.splitlines() if line.startswith("|")]
    assert "\n".join(["<!-- formats -->", *table, "<!-- /formats -->"]) in page
    assert {line.split(" ")[1] for line in table[2:]} == {format.name for format in readers.FORMATS}


MENTIONED = re.compile(
    r"(?<![\w./-])((?:fgrpo_plugin|benchmarks|experiments|recipes|tests|docs|requirements|patches)/[\w./]+\.\w+)\b"
)
SOURCES = [
    path
    for folder in ("fgrpo_plugin", "benchmarks", "docs", "tests", "experiments", "recipes")
    for pattern in ("*.py", "*.yaml", "*.sh")
    for path in (DOCS.parent / folder).rglob(pattern)
]


def test_paths_that_sources_name_exist():
    missing = {
        f"{path.relative_to(DOCS.parent)}: {name}"
        for path in SOURCES
        for name in MENTIONED.findall(path.read_text())
        # These speak of verl's tree and of the built site.
        if path.name not in ("test_patches.py", "settings_table.yaml", "test_site.py")
        and not (DOCS.parent / name).exists()
    }
    assert not missing, sorted(missing)
