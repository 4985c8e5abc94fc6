"""Rows of the user's own for the quick start."""

import json
from pathlib import Path


def _jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
