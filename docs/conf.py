"""The site, by Sphinx: its pages are the repository's own Markdown files, where they stand (`make site`)."""

import re
from pathlib import Path
from typing import Any

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

import fgrpo_plugin

project = "fgrpo-plugin"
copyright = "Apache-2.0"
version = release = fgrpo_plugin.__version__

# The source folder is the repository, so that a link is the same one here and in a checkout.
root_doc = "docs/index"
include_patterns = [
    "*.md",
    "docs/*.md",
    "recipes/*/README.md",
    "experiments/*/README.md",
    "patches/README.md",
    "patches/pull_requests/*.md",
]
exclude_patterns = ["AGENTS.md"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
nitpicky = True  # a name or a link that leads nowhere is a warning, and `make site` fails on warnings
nitpick_ignore_regex = [("py:.*", r"(torch|numpy|np|pydantic|collections|typing|pathlib|annotated_types)\b.*")]
# verl's template of a pull request begins at the third level, and those texts are reached from their page alone.
suppress_warnings = ["myst.header", "toc.not_included"]
default_role = "code"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_class_signature = "separated"  # divergences are asked for by name, not constructed
napoleon_use_rtype = False  # what is returned is described in words, of which no name is a link

html_theme = "furo"
html_title = f"fgrpo-plugin {release}"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_math_renderer = "mathml"


def _inline(writer: Any, node: Any) -> None:
    writer.body.append(convert(node.astext(), display="inline"))
    raise SkipNode


def _block(writer: Any, node: Any) -> None:
    writer.body.append(f"<div class='formula'>{convert(node.astext(), display='block')}</div>")
    raise SkipNode


def _start_page(app: Any, error: Exception | None) -> None:
    """Lead from the site's root to its first page, which lies in a folder."""
    if error is None:
        address = f"{root_doc}.html"
        Path(app.outdir, "index.html").write_text(
            f'<!doctype html><meta charset="utf-8"><title>{project}</title>'
            f'<meta http-equiv="refresh" content="0; url={address}"><a href="{address}">{project}</a>'
        )


def _plain(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Take the stars and bars of docstrings as f* and abs(a), not as markup."""
    for number, line in enumerate(lines):
        if not line.lstrip().startswith(">>>"):
            lines[number] = re.sub(r"[|*]", r"\\\g<0>", line)


def setup(app: Any) -> None:
    """Show mathematics as MathML, which browsers read without a script."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("autodoc-process-docstring", _plain, priority=400)  # before napoleon
    app.connect("build-finished", _start_page)
