"""The pages that are made from the code say what the code says now, and have their pictures."""

import importlib.util
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


NUMBER = re.compile(r"\d+\.?\d*")


@pytest.mark.parametrize("name", ["divergences", "theory"])
def test_made_page_is_current(name, tmp_path):
    spec = importlib.util.spec_from_file_location(f"make_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text, made = (DOCS / f"{name}.md").read_text(), module.page()
    assert NUMBER.sub("#", made) == NUMBER.sub("#", text), f"run `make docs`: docs/{name}.md is out of date"
    # Another processor's rounding may move a last digit, or a start that falls by hardly more than 1e-12.
    for now, then in zip(NUMBER.findall(made), NUMBER.findall(text), strict=True):
        assert float(now) == pytest.approx(float(then), rel=0.02, abs=0.002 if "." in then else 1)
    assert "!" not in re.sub(r"!\[", "[", text)  # the sign with which a table marks a statement that does not hold
    module.draw(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(re.findall(r"\(figures/([^)]+)\)", text))


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
