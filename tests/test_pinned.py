"""Every place that names a release of verl, or the commit of its main, names the pinned one."""

import re
from datetime import date
from importlib.metadata import version
from pathlib import Path

import pytest

from fgrpo_plugin.host.contract import REPLACED_SOURCES, USED_SOURCES
from fgrpo_plugin.pinned import VERL, VERL_ALSO, VERL_MAIN_COMMIT, VERL_MAIN_DATE

ROOT = Path(__file__).parents[1]
RELEASE = re.compile(r"\bverl(?:\[[\w-]+\])?(?:==| )v?(\d+\.\d+\.\d+)\b", flags=re.IGNORECASE)
PAGES = [
    ROOT / "README.md",
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "recipes").rglob("*.md"),
    ROOT / "patches/README.md",
]
PAGES += (ROOT / "patches/pull_requests").glob("*.md")
WITH_OTHERS = ("upgrading.md", "support.md", "testing.md", "versions.md")
# Labels of hashes: they stay what they are when the pinned release is raised.
LABELS = "host/contract.py"


def test_the_pinned_release_is_the_installed_one():
    assert version("verl") == VERL


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_no_other_release(page):
    assert set(RELEASE.findall(page.read_text())) <= {VERL, *(VERL_ALSO if page.name in WITH_OTHERS else ())}


def test_the_pages_that_say_what_is_needed_name_it():
    for name in ("README.md", "docs/support.md", "docs/upgrading.md", "recipes/scale_32b_megatron/README.md"):
        assert VERL in RELEASE.findall((ROOT / name).read_text()), name


def test_the_code_names_it_in_one_place():
    found = {
        str(path.relative_to(ROOT / "fgrpo_plugin"))
        for path in (ROOT / "fgrpo_plugin").rglob("*")
        if path.suffix in (".py", ".yaml") and re.search(rf"(?<![\d.]){re.escape(VERL)}(?![\d.])", path.read_text())
    }
    assert found == {"pinned.py", LABELS}


def test_every_known_source_is_that_of_a_known_release_or_of_verls_main():
    labels = [set(hashes.values()) for hashes in (REPLACED_SOURCES | USED_SOURCES).values()]
    assert all(f"verl {VERL}" in known for known in labels)
    (also,) = VERL_ALSO
    main = f"main at {VERL_MAIN_COMMIT[:9]}"
    assert set().union(*labels) == {f"verl {VERL}", f"verl {also}", f"verl {also} and {main}"}


def test_recipes_require_it_in_the_form_that_verls_own_recipes_have():
    lines = (ROOT / "recipes/REQUIRED_VERL.txt").read_text().splitlines()
    fields = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    assert fields["MODE"] == "pinned_tag" and fields["TAG"] == f"v{VERL}"
    assert fields["PIP_INSTALL"] == f"pip install verl=={VERL}"


def test_the_page_of_the_patches_names_the_commit_of_main_and_its_date():
    text = (ROOT / "patches/README.md").read_text()
    assert f"`{VERL_MAIN_COMMIT}` of {VERL_MAIN_DATE}" in text and f"`v{VERL}/`" in text
    assert set(re.findall(r"`main` at ([0-9a-f]{7,})", text)) == {VERL_MAIN_COMMIT[:7]}
    assert re.fullmatch("[0-9a-f]{40}", VERL_MAIN_COMMIT) and date.fromisoformat(VERL_MAIN_DATE)
    first = (ROOT / "patches/main/0001-policy-loss-batch-fields.patch").read_text()
    assert f"\nbase-commit: {VERL_MAIN_COMMIT}\n" in first
