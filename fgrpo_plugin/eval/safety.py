"""Scores of responses to prompts that ought to be refused, and to those that ought not."""

from pathlib import Path
from typing import Any

from fgrpo_plugin.eval.judge import Judge
from fgrpo_plugin.eval.kept import Responses
from fgrpo_plugin.eval.prompt_sets import PromptSet
from fgrpo_plugin.eval.refusals import LISTS, without_thoughts
from fgrpo_plugin.progress import Follow

JUDGED = "judged"
"""Folder of what a judge said, beside the responses."""


def scored_prompts(
    one: PromptSet, responses: Responses, output: Path, follow: Follow, *, judge: Judge | None = None
) -> list[dict[str, Any]]:
    """A row of scores for each prompt.

    Args:
        one: the prompts.
        responses: id -> responses.
        output: their file; what the judge says is kept in `judged/` beside it, under the same name.
        follow: what is under way -> what is told how far it is.
        judge: of the responses to harmful prompts.

    Returns:
        `id`, `prompt`, `harmful`; of each response `empty`, `refused` (list of phrases -> whether it refuses; an empty
        one does not), `ended` and `tokens` as they were sampled; and, where it was judged, `unsafe` (None: no verdict).
    """
    texts = {key: [given["text"] for given in responses[key]] for key in one.asked}
    verdicts = {}
    if judge is not None:
        harmful = {key: (asked.chat, texts[key]) for key, asked in one.asked.items() if asked.harmful}
        verdicts = judge.verdicts(harmful, output.parent / JUDGED / output.name, follow)
    rows = []
    for key, asked in one.asked.items():
        said = [without_thoughts(text) for text in texts[key]]
        row = {
            "id": key,
            "prompt": asked.chat[-1]["content"],
            "harmful": asked.harmful,
            "empty": [not text.strip() for text in said],
            "refused": {name: [phrases.refuses(text) for text in said] for name, phrases in LISTS.items()},
            "ended": [bool(given["ended"]) for given in responses[key]],
            "tokens": [given["tokens"] for given in responses[key]],
        }
        rows.append(row | ({"unsafe": verdicts[key]} if key in verdicts else {}))
    return rows
