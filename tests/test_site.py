"""The site is built without a warning, leads nowhere that is not there, and describes every public name."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sphinx.util.inventory import InventoryFile

import fgrpo_plugin.advantages
import fgrpo_plugin.divergences
import fgrpo_plugin.losses
import fgrpo_plugin.theory

ROOT = Path(__file__).parents[1]
API = (fgrpo_plugin.advantages, fgrpo_plugin.divergences, fgrpo_plugin.losses, fgrpo_plugin.theory)


def build(source: Path, target: Path) -> subprocess.CompletedProcess:
    """What `make site` runs."""
    words = ["-q", "-W", "--keep-going", "-c", source / "docs", "-d", target / "doctrees", source, target / "site"]
    return subprocess.run([sys.executable, "-m", "sphinx", *words], capture_output=True, text=True, cwd=ROOT)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("site")
    done = build(ROOT, target)
    assert done.returncode == 0, done.stderr
    return target / "site"


def test_its_root_leads_to_its_first_page(site):
    assert "docs/index.html" in (site / "index.html").read_text()
    assert (site / "docs" / "index.html").is_file()


def test_every_page_is_in_its_list_of_pages(site):
    first = (site / "docs" / "index.html").read_text()
    listed = first[first.index("sidebar-tree") : first.index("</aside>")]
    for page in site.rglob("*.html"):
        name = page.relative_to(site).as_posix()
        if name in ("index.html", "docs/index.html", "genindex.html", "search.html") or "pull_requests" in name:
            continue
        link = name.removeprefix("docs/") if name.startswith("docs/") else f"../{name}"
        assert f'href="{link}"' in listed or "docs/make" in name or "py-modindex" in name, name


def test_every_public_name_has_its_description(site):
    found = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data
    described = {name for kind, names in found.items() if kind.startswith("py:") for name in names}
    wanted = {f"{module.__name__}.{name}" for module in API for name in module.__all__}
    divergence = fgrpo_plugin.divergences.Divergence
    wanted |= {f"fgrpo_plugin.divergences.Divergence.{name}" for name in vars(divergence) if not name.startswith("_")}
    assert not wanted - described and len(wanted) > 30


def test_mathematics_needs_no_script(site):
    formula = (site / "docs" / "separation.html").read_text()
    assert "<math" in formula and not re.search("<script[^>]*mathjax", formula, flags=re.IGNORECASE)


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ("[gone](gone.md)", "gone.md"),
        ("[gone](index.md#gone)", "gone"),
        ("![gone](gone.png)", "gone.png"),
        ("```{eval-rst}\n.. autofunction:: fgrpo_plugin.losses.gone\n```", "gone"),
        ("```{eval-rst}\n:py:func:`fgrpo_plugin.gone`\n```", "gone"),
    ],
)
def test_what_leads_nowhere_ends_it(tmp_path, planted, said):
    (tmp_path / "docs").mkdir()
    for name in ("conf.py", "site.css"):
        shutil.copy(ROOT / "docs" / name, tmp_path / "docs")
    (tmp_path / "docs" / "index.md").write_text(f"# A page\n\n{planted}\n")
    done = build(tmp_path, tmp_path / "made")
    assert done.returncode != 0 and said in done.stderr
