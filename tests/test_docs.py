"""The pages that are made from the code say what the code says now, and have their pictures."""

import importlib.util
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("name", ["divergences", "theory"])
def test_made_page_is_current(name):
    spec = importlib.util.spec_from_file_location(f"make_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (DOCS / f"{name}.md").read_text()
    assert module.page() == text, f"run `make docs`: docs/{name}.md is out of date"
    assert "!" not in re.sub(r"!\[", "[", text)  # the sign with which a table marks a statement that does not hold


def test_the_readmes_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", (DOCS.parent / "README.md").read_text(), flags=re.DOTALL)
    names: dict = {}
    exec(example, names)
    gradient = names["log_prob"].grad
    assert gradient[1].sum() < 0 < gradient[0].sum()  # the good row goes up, the bad one down


@pytest.mark.parametrize("page", [*DOCS.glob("*.md"), DOCS.parent / "README.md"], ids=lambda page: page.name)
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target
