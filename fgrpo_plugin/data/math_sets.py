"""Published sets of mathematical problems -> verl's parquet format, with a reward of the host that scores them.

The host chooses its reward by a row's `data_source`. LIMR and Open-RS are scored by the rule for MATH, from which LIMR
was drawn, so they carry its name there and their own in `extra_info`.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgrpo_plugin import tables

_MATH = "DigitalLearningGmbH/MATH-lighteval"
_BOXED = r"Please reason step by step, and put your final answer within \boxed{}."
_HASHES = 'Reason step by step, then give the final answer after "####".'


@dataclass(frozen=True)
class MathSet:
    """Where a set is published, in which columns, and how the host scores it."""

    hub: str
    splits: tuple[str, ...]
    question: str
    answer: str
    data_source: str = _MATH
    config: str | None = None
    instruction: str = _BOXED

    def ground_truth(self, answer: str) -> str:
        """The bare final answer, as the host compares it."""
        if self.instruction == _HASHES:
            found = re.search(r"####\s*(\S+)", answer)
            return found[1].replace(",", "").strip("$.") if found else ""
        return answer.strip().strip("$").strip()

    def right_answer(self, ground_truth: str) -> str:
        """A response that ends with this answer in the form that is asked for."""
        return f"#### {ground_truth}" if self.instruction == _HASHES else f"\\boxed{{{ground_truth}}}"


MATH_SETS = {
    "gsm8k": MathSet(
        "openai/gsm8k", ("train", "test"), "question", "answer", "openai/gsm8k", config="main", instruction=_HASHES
    ),
    "limr": MathSet("GAIR/LIMR", ("train",), "prompt", "answer"),
    "open_rs": MathSet("knoveleng/open-rs", ("train",), "problem", "answer"),
    "math_500": MathSet("HuggingFaceH4/MATH-500", ("test",), "problem", "answer", "HuggingFaceH4/MATH-500"),
}


@dataclass
class Prepared:
    """One file of problems that was written, and the rows that were left out.

    Attributes:
        file: the parquet file.
        rows: how many it holds.
        left_out: reason -> rows left out for it.
        first_left_out: reason -> the first of them.
    """

    file: Path
    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    first_left_out: dict[str, int] = field(default_factory=dict)


def prepare(
    name: str,
    output: Path,
    *,
    earns_full_reward: Callable[[str, str, str], bool],
    source: str | None = None,
    split: str | None = None,
) -> list[Prepared]:
    """Write a set as `output`/`name`/<split>.parquet, one file a split.

    Args:
        name: of `MATH_SETS`.
        output: folder; made where it is missing.
        earns_full_reward: of a data source, a response and a ground truth: whether the host's own reward gives it 1.
        source: a .parquet, .json, .jsonl or .arrow file, a folder, or a dataset's name, in the published columns; None
            takes the published dataset.
        split: this one alone; None takes every split of the set, or the first where `source` is one file.

    Raises:
        ValueError: an unknown set or split, a source that is missing, cannot be read, has other columns, or holds no
            row that can be used; the message names it and the remedy.
    """
    if name not in MATH_SETS:
        raise ValueError(f"{name} is not known; choose among {', '.join(MATH_SETS)}.")
    known = MATH_SETS[name]
    if split is not None and split not in known.splits:
        raise ValueError(f"--split={split}: {name} has {' and '.join(known.splits)}.")
    one_file = source is not None and Path(source).expanduser().is_file()
    splits = (split,) if split else known.splits[:1] if one_file else known.splits
    return [_prepare(name, known, part, output.expanduser(), source, earns_full_reward) for part in splits]


def _prepare(
    name: str,
    known: MathSet,
    split: str,
    output: Path,
    source: str | None,
    earns_full_reward: Callable[[str, str, str], bool],
) -> Prepared:
    import datasets

    place = source or known.hub
    examples = _load(place, known.config if source is None else None, split)
    missing = [column for column in (known.question, known.answer) if column not in examples.column_names]
    if missing and examples.column_names:
        raise ValueError(
            f"{place}: column {', '.join(missing)} of {name} is missing (found: {', '.join(examples.column_names)}); "
            "rename one, or name another set."
        )
    found = Prepared(output / name / f"{split}.parquet")
    rows = []
    for index, example in enumerate(examples):
        question, answer = example[known.question], example[known.answer]
        truth = known.ground_truth(str(answer)) if answer is not None else ""
        problem = _problem(known, question, truth, earns_full_reward)
        if problem:
            found.left_out[problem] += 1
            found.first_left_out.setdefault(problem, index)
            continue
        rows.append(
            {
                "data_source": known.data_source,
                "prompt": [{"role": "user", "content": f"{question}\n{known.instruction}"}],
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": truth},
                "extra_info": {"split": split, "index": index, "dataset": name, "answer": str(answer)},
            }
        )
    if not rows:
        reasons = "; ".join(f"{reason}: {count}" for reason, count in found.left_out.items()) or "it is empty"
        raise ValueError(f"{place}: no row of {split} can be used ({reasons}).")
    found.rows = len(rows)
    found.file.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows).to_parquet(str(found.file))
    return found


def _problem(
    known: MathSet, question: Any, truth: str, earns_full_reward: Callable[[str, str, str], bool]
) -> str | None:
    """Why nothing could be learned from a row, or None."""
    if not isinstance(question, str) or not question.strip():
        return f"{known.question} is no text"
    if not truth:
        return f"{known.answer} holds no final answer"
    # A reward that the right answer does not earn makes every group of the prompt flat.
    if not earns_full_reward(known.data_source, known.right_answer(truth), truth):
        return "the host's reward does not recognise the right answer"
    return None


def _load(source: str, config: str | None, split: str) -> Any:
    try:
        return tables.load(source, split, config=config, split_setting="--split")
    except ValueError as reason:
        raise ValueError(f"{source}: {split} cannot be read ({reason}).") from reason
