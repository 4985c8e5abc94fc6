"""Put measured tables into the pages that show them:  python docs/make/measured.py

A page names a table between `<!-- measured: FILE -->` and `<!-- /measured -->`; `make benchmarks`, `make figures` and experiments write the
files.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    "docs/benchmarks.md", "docs/engines.md", "docs/plan.md", "docs/preference_data.md", "docs/safety.md",
    "docs/separation.md", "experiments/separation/README.md",
)  # fmt: skip
BLOCK = re.compile(r"(<!-- measured: (\S+) -->\n).*?(<!-- /measured -->)", flags=re.DOTALL)


def filled(text: str) -> str:
    """The page with the tables as they stand in their files."""
    return BLOCK.sub(lambda found: found[1] + (ROOT / found[2]).read_text().strip() + "\n" + found[3], text)


def main() -> None:
    for name in PAGES:
        page = ROOT / name
        page.write_text(filled(page.read_text()))


if __name__ == "__main__":
    main()
