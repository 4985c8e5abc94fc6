"""How fast preference data are read, rendered and tokenised, and what a million rows take in memory.

    python -m benchmarks.preference_rows --model FOLDER [--files FILE ...] [--rows 1000000] [--output table.md]

The rows of `--files` (else made ones, of the lengths of HH-RLHF) through `load_rows` as a run has them: first start,
second start. Then `--rows` made rows of 160 tokens; peak memory is the process's largest resident set.
"""

import argparse
import gzip
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

WORDS = [
    "the",
    "of",
    "a",
    "to",
    "and",
    "in",
    "is",
    "it",
    "you",
    "that",
    "he",
    "was",
    "for",
    "on",
    "are",
    "with",
    "as",
    "his",
    "they",
    "be",
    "at",
    "one",
    "have",
    "this",
    "from",
]


def made_pairs(file: Path, pairs: int, words: int) -> None:
    """Pairs of made text: prompt and two responses of about so many words each."""
    draw = random.Random(0)
    with file.open("w") as out:
        for number in range(pairs):
            prompt, good, bad = (" ".join(draw.choices(WORDS, k=words)) for _ in range(3))
            out.write(json.dumps({"prompt": f"{number} {prompt}", "chosen": good, "rejected": f"{bad} no"}) + "\n")


def measure(files: list[str], tokenizer: Any, folder: Path) -> dict[str, float]:
    """Seconds of the first and the second start, rows, tokens, and the text's bytes."""
    from fgrpo_plugin.preference.config import PreferenceConfig
    from fgrpo_plugin.preference.loading import RowSettings, load_rows

    wanted = PreferenceConfig(files=files, on_bad_row="skip", on_too_long="drop", on_templated="skip")
    settings = RowSettings(8192, 8192, {})
    found: dict[str, float] = {}
    for start in ("first", "second"):
        begun = time.perf_counter()
        rows = load_rows(wanted, False, tokenizer, settings, folder, say=lambda line: None).rows
        found[start] = time.perf_counter() - begun
    found |= {"rows": len(rows), "tokens": int(rows.lengths.sum())}
    return found | {"bytes": sum(_size(Path(file)) for file in files)}


def _size(file: Path) -> int:
    return len(gzip.decompress(file.read_bytes())) if file.suffix == ".gz" else file.stat().st_size


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder of a tokenizer; the quick start's own without it")
    parser.add_argument("--files", nargs="*", default=[], help="preference data")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)  # this process measures its own peak
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.memory_of is not None:
        _report_memory(options)
        return
    tokenizer = _tokenizer(options.model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files, what = options.files, f"{', '.join(Path(file).name for file in options.files)}"
        if not files:
            made_pairs(folder / "made.jsonl", 10_000, 60)
            files, what = [str(folder / "made.jsonl")], "made pairs"
        speed = measure(files, tokenizer, folder / "cache")
        made_pairs(folder / "many.jsonl", options.rows // 2, 72)
        command = [sys.executable, "-m", "benchmarks.preference_rows", "--memory-of", str(folder / "many.jsonl")]
        command += ["--model", str(options.model)] if options.model else []
        many = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    lines = [
        f"{tokenizer.name_or_path.rstrip('/').rpartition('/')[2] or 'the quick start'}'s tokenizer, "
        f"{len(os.sched_getaffinity(0))} CPU cores ({platform.machine()}), {date.today()}:\n",
        "| data | rows | tokens a row | first start, s | rows/s | MB/s | second start, s | peak memory, GiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for label, found, peak in ((what, speed, "-"), ("made rows", many, f"{many['peak']:.2f}")):
        lines.append(
            f"| {label} | {found['rows']:,} | {found['tokens'] / found['rows']:.0f} | {found['first']:.1f} | "
            f"{found['rows'] / found['first']:,.0f} | {found['bytes'] / found['first'] / 1e6:.2f} | "
            f"{found['second']:.2f} | {peak} |"
        )
    text = "\n".join(lines) + "\n"
    print(text)
    if options.output is not None:
        options.output.write_text(text)


def _report_memory(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        found = measure([str(options.memory_of)], _tokenizer(options.model), Path(name))
    print(json.dumps(found | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))


def _tokenizer(model: Path | None) -> Any:
    if model is None:
        from fgrpo_plugin.quickstart.model import build_tokenizer

        return build_tokenizer()
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


if __name__ == "__main__":
    main()
