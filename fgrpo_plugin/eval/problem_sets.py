"""Sets of mathematical problems in the columns in which they are published, or in verl's format."""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from fgrpo_plugin import tables
from fgrpo_plugin.folders import ENDINGS, is_saved, kind_ending

COLUMNS = (
    ("Body+Question", "Answer"),
    ("input", "target"),
    ("question", "answer"),
    ("problem", "answer"),
    ("problem", "solution"),
)
"""Pairs of columns of a problem and its answer, the first that a row has; `a+b` is two columns."""
INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."
_ENDING = re.compile(r"\.(parquet|jsonl?|arrow)(\.gz|\.zst)?$")


@dataclass(frozen=True)
class MathProblem:
    """A problem as the model is asked it.

    Attributes:
        chat: messages.
        answer: the right one, as text.
    """

    chat: tuple[dict[str, str], ...]
    answer: str


@dataclass(frozen=True)
class ProblemSet:
    """A set under the name that tables give it.

    Attributes:
        name: of the file, without its ending.
        problems: id -> problem; an id tells of the row and of what is asked.
    """

    name: str
    problems: dict[str, MathProblem]


def question_and_answer(row: Mapping[str, Any]) -> tuple[str | list[dict[str, str]], Any]:
    """A row's problem, as text or in verl's format as messages, and what stands in its column of the answer.

    Raises:
        ValueError: no pair of columns is known; the reason alone.
    """
    if isinstance(row.get("prompt"), list | tuple) and isinstance(row.get("reward_model"), Mapping):
        chat = [dict(message) for message in row["prompt"] if isinstance(message, Mapping)]
        return chat, row["reward_model"].get("ground_truth")
    pair = next((pair for pair in COLUMNS if all(name in row for name in [*pair[0].split("+"), pair[1]])), None)
    if pair is None:
        known = "; ".join(" and ".join(pair).replace("+", ", ") for pair in COLUMNS)
        raise ValueError(
            f"no columns of a problem and its answer (found: {', '.join(map(str, row)) or 'none'}); rename them to one "
            f"of: {known}; or to verl's prompt (messages) and reward_model"
        )
    *first, last = (row[name].strip() if isinstance(row[name], str) else "" for name in pair[0].split("+"))
    before = (part if part[-1] in ".?!," else f"{part}." for part in first if part)
    return (" ".join([*before, last]) if last else ""), row[pair[1]]


def files_of_sets(data: Sequence[Path]) -> list[Path]:
    """Files as they are, and every file of data in a folder, in the order of names.

    Raises:
        ValueError: one does not exist, or a folder holds none.
    """
    found: list[Path] = []
    for path in data:
        if path.is_dir() and not is_saved(path):
            files = sorted(file for file in path.iterdir() if file.is_file() and kind_ending(file) in ENDINGS)
            if not files:
                raise ValueError(f"--data {path}: the folder holds no file of {', '.join(ENDINGS)}; name another.")
            found += files
        elif path.exists():
            found.append(path)
        else:
            raise ValueError(f"--data {path}: there is no such file or folder; name a file of problems.")
    return found


def read_sets(data: Sequence[Path], *, limit: int | None = None, instruction: str = INSTRUCTION) -> list[ProblemSet]:
    """Read every set.

    Args:
        data: files and folders of files.
        limit: problems of each set, drawn once for all by what is asked; None is all of them.
        instruction: said behind each problem; problems in verl's format are asked as they are.

    Raises:
        ValueError: a file cannot be read, a column is missing, an answer cannot be compared, two sets have a name.
    """
    found: dict[str, ProblemSet] = {}
    for file in files_of_sets(data):
        name = _ENDING.sub("", file.name)
        if name in found:
            raise ValueError(f"--data names two sets {name}; a table tells sets by the names of files: rename one.")
        try:
            rows = tables.load(str(file), "test", split_setting="the split in the folder's name").rows
            problems = [_problem(row, number, instruction) for number, row in enumerate(rows)]
        except ValueError as reason:
            raise ValueError(f"--data {file}: {str(reason).rstrip('.')}.") from None
        if not problems:
            raise ValueError(f"--data {file}: it holds no problems.")
        keyed = {f"{number}-{_asked(problem)}": problem for number, problem in enumerate(problems)}
        kept = sorted(keyed, key=lambda key: key.partition("-")[2])[:limit] if limit else list(keyed)
        found[name] = ProblemSet(name, {key: keyed[key] for key in keyed if key in set(kept)})
    return list(found.values())


def _problem(row: Mapping[str, Any], number: int, instruction: str) -> MathProblem:
    from fgrpo_plugin.eval.scoring import parsed_answer

    asked, given = question_and_answer(row)
    if isinstance(asked, str):
        text = f"{asked}\n{instruction}" if instruction else asked
        chat: list[dict[str, str]] = [{"role": "user", "content": text}] if asked.strip() else []
    else:
        chat = asked
    if not chat or not all(str(message.get("content") or "").strip() for message in chat):
        raise ValueError(f"row {number} asks nothing")
    answer = "" if given is None or isinstance(given, bool) else _text(given).strip()
    if "####" in answer:  # GSM8K's solutions
        answer = answer.rpartition("####")[2].strip()
    if not parsed_answer(answer):
        raise ValueError(f"row {number} has no answer that can be compared ({answer[:60]!r})")
    return MathProblem(tuple(chat), answer)


def _text(given: Any) -> str:
    """As text; a number in full, because an exponent is read as Euler's number, and nothing for one that is none."""
    if isinstance(given, float):
        return f"{Decimal(repr(float(given))):f}" if math.isfinite(given) else ""
    return str(given)


def _asked(problem: MathProblem) -> str:
    return hashlib.sha256(repr((problem.chat, problem.answer)).encode()).hexdigest()[:16]
