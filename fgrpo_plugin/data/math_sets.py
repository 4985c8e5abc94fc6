"""Published sets of mathematical problems -> verl's parquet format, with the reward of verl that scores them.

verl chooses its reward by a row's `data_source`. LIMR and Open-RS are scored by the rule for MATH, from which LIMR
was drawn, so they carry its name there and their own in `extra_info`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgrpo_plugin import tables
from fgrpo_plugin.folders import expanded

_MATH = "DigitalLearningGmbH/MATH-lighteval"
_GSM8K = "openai/gsm8k"  # verl's rule for a number behind "####"
_BOXED = r"Please reason step by step, and put your final answer within \boxed{}."
_HASHES = 'Reason step by step, then give the final answer after "####".'


_NUMBER = re.compile(r"(-?)\$?(\d{1,3}(?:,\d{3})+|\d*)(\.\d+)?%?\.?(?<=[\d%.])")


@dataclass(frozen=True)
class MathSet:
    """Where a set is published, in which columns, and how verl scores it.

    Attributes:
        hub: name of the dataset.
        splits: which it has.
        question: names that the column of the problem has where the set is published; `a+b` is two columns.
        answer: names that the column of the answer has.
        data_source: by which verl chooses its reward.
        config: of the dataset, where it has several.
        instruction: what is said behind each problem.
        numeric: whether the answer is the number itself, in place of a solution that ends with "#### number".
    """

    hub: str
    splits: tuple[str, ...]
    question: tuple[str, ...]
    answer: tuple[str, ...]
    data_source: str = _MATH
    config: str | None = None
    instruction: str = _BOXED
    numeric: bool = False

    def ground_truth(self, answer: Any) -> str:
        """The bare final answer, as verl compares it: a number that is whole is written without decimals."""
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            return ""
        text = str(answer).strip()
        if self.instruction == _HASHES:
            found = text if self.numeric else next(iter(re.findall(r"####([^\n]*)", text)), "")
            number = _NUMBER.fullmatch(found.strip())
            if number is None:
                return ""
            text = f"{number[1]}{number[2].replace(',', '') or '0'}{number[3] or ''}"
        elif isinstance(answer, float) and not _NUMBER.fullmatch(
            text
        ):  # nan, or so large or small that it has an exponent
            return ""
        else:
            text = text.strip("$").strip()
        return re.sub(r"^(-?\d+)\.0+$", r"\1", text)

    def right_answer(self, ground_truth: str) -> str:
        """A response with this answer, written otherwise than the ground truth is, as a model may well write it."""
        if self.instruction == _HASHES:
            whole = re.fullmatch(r"-?\d+", ground_truth)
            return f"It follows.\n#### {int(ground_truth):,}\n" if whole else f"It follows.\n#### {ground_truth}\n"
        dressed = ground_truth.replace("\\frac", "\\dfrac").replace(",", ", ")
        return f"It follows that the answer is $\\boxed{{{dressed}}}$."


MATH_SETS = {
    "gsm8k": MathSet(
        "openai/gsm8k", ("train", "test"), ("question",), ("answer",), _GSM8K, config="main", instruction=_HASHES
    ),
    "svamp": MathSet(
        "ChilleD/SVAMP", ("train", "test"), ("Body+Question",), ("Answer",), _GSM8K, instruction=_HASHES, numeric=True
    ),
    "mawps": MathSet(
        "MU-NLPC/Calc-mawps",
        ("train", "validation", "test"),
        ("input", "question"),
        ("target", "result"),
        _GSM8K,
        instruction=_HASHES,
        numeric=True,
    ),
    "limr": MathSet("GAIR/LIMR", ("train",), ("prompt",), ("answer",)),
    "open_rs": MathSet("knoveleng/open-rs", ("train",), ("problem",), ("answer",)),
    "math_500": MathSet(
        "HuggingFaceH4/MATH-500", ("test",), ("problem", "question"), ("answer",), "HuggingFaceH4/MATH-500"
    ),
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
        earns_full_reward: of a data source, a response and a ground truth: whether verl's own reward gives it 1.
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
    one_file = source is not None and expanded(source).is_file()
    splits = (split,) if split else known.splits[:1] if one_file else known.splits
    return [_prepare(name, known, part, expanded(output), source, earns_full_reward) for part in splits]


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
    found = Prepared(output / name / f"{split}.parquet")
    rows: list[dict[str, Any]] = []
    columns: tuple[list[str], str] | None = None
    for index, example in enumerate(_examples(place, known.config if source is None else None, split)):
        columns = columns or (
            _column(known.question, example, place, name).split("+"),
            _column(known.answer, example, place, name),
        )
        parts, answer = [example.get(part) for part in columns[0]], example.get(columns[1])
        texts = [part for part in parts if isinstance(part, str) and part.strip()]
        question = " ".join([*map(_sentence, texts[:-1]), *texts[-1:]]).strip() if len(texts) == len(parts) else ""
        truth = known.ground_truth(answer) if answer is not None else ""
        problem = _problem(known, columns, question, truth, earns_full_reward)
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


def _column(names: tuple[str, ...], example: dict[str, Any], place: str, name: str) -> str:
    """Return which of the names the set has here."""
    found = [candidate for candidate in names if all(part in example for part in candidate.split("+"))]
    if len(found) > 1:
        raise ValueError(f"{place}: the columns {' and '.join(found)} could both be meant; leave one of them out.")
    if found:
        return found[0]
    wanted = " or ".join(candidate.replace("+", ", ") for candidate in names)
    raise ValueError(
        f"{place}: column {wanted} of {name} is missing (found: {', '.join(example)}); rename one, or name another set."
    )


def _sentence(text: str) -> str:
    text = text.strip()
    return text if not text or text[-1] in ".?!," else f"{text}."


def _problem(
    known: MathSet,
    columns: tuple[list[str], str],
    question: str,
    truth: str,
    earns_full_reward: Callable[[str, str, str], bool],
) -> str | None:
    """Return why nothing could be learned from a row, or None."""
    if not question:
        return f"{', '.join(columns[0])} is no text"
    if not truth:
        return f"{columns[1]} holds no final answer"
    # A reward that the right answer does not earn makes every group of the prompt flat.
    if not earns_full_reward(known.data_source, known.right_answer(truth), truth):
        return "verl's reward does not recognise the right answer"
    return None


def _examples(source: str, config: str | None, split: str) -> Iterator[dict[str, Any]]:
    try:
        yield from tables.load(source, split, config=config, split_setting="--split").rows
    except ValueError as reason:
        raise ValueError(f"{source}: {split} cannot be read ({reason}).") from reason
