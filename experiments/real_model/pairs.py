"""Preference pairs of the screened responses: of a problem the right ones, chosen, beside as many of the wrong ones.

    python experiments/real_model/pairs.py PAIRS.jsonl [--data FOLDER]

What docs/preference_data.md shows of `fgrpo prefs check` is of these; the problems are MAWPS's, from where they are
published or from a folder that holds them.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from fgrpo_plugin.eval.kept import KeptResponses
from fgrpo_plugin.eval.scoring import is_right
from fgrpo_plugin.realmodel.problems import read_problems, split
from fgrpo_plugin.realmodel.prompts import CHOSEN, chat

SCREENED = Path(__file__).with_name("screened.jsonl")


def pairs(data: list[Path]) -> list[dict]:
    """The first right and the first wrong response to each problem, the second ones, and so on; each text once."""
    problems, _ = split(read_problems(data))
    named = {str(number): problem for number, problem in enumerate(problems)}
    chats = {key: chat(problem, CHOSEN) for key, problem in named.items()}
    settings = json.loads(SCREENED.read_text().splitlines()[0])["settings"]
    found = []
    for key, responses in KeptResponses(SCREENED, settings).read(chats).items():  # refuses another prompt's responses
        texts = list(dict.fromkeys(one["text"] for one in responses))
        right = [text for text in texts if is_right(text, named[key].answer)]
        wrong = [text for text in texts if text not in right]
        found += [
            {"prompt": chats[key], "chosen": chosen, "rejected": rejected}
            for chosen, rejected in zip(right, wrong, strict=False)
        ]
    return found


def main(
    output: Annotated[Path, typer.Argument(help="JSONL file to write.")],
    data: Annotated[list[Path] | None, typer.Option(help="File or folder of MAWPS; repeatable.")] = None,
) -> None:
    """Write them."""
    rows = pairs(data or [])
    output.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} pairs to {output}")


if __name__ == "__main__":
    typer.run(main)
