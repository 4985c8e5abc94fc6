"""The three fixed prompts on training problems, before training; which is chosen stands in realmodel/prompts.py.

python experiments/real_model/choose_prompt.py DATA... [--folder runs/realmodel]
"""

import json
from dataclasses import asdict
from pathlib import Path

import typer

from fgrpo_plugin.eval.sampling import Sampling, responses
from fgrpo_plugin.realmodel.model import smollm2
from fgrpo_plugin.realmodel.problems import read_problems, split
from fgrpo_plugin.realmodel.prompts import PROMPTS, chat, shares
from fgrpo_plugin.realmodel.run import MAX_TOKENS

PROBLEMS = 100


def main(
    data: list[Path],
    folder: Path = Path("runs/realmodel"),
) -> None:
    """Score each prompt greedily and write the table."""
    training, _ = split(read_problems(data))
    named = {str(number): problem for number, problem in enumerate(training[:PROBLEMS])}
    found = {}
    for prompt in PROMPTS:
        given = responses(
            smollm2(folder.absolute() / "model"),
            {key: chat(problem, prompt) for key, problem in named.items()},
            folder.absolute() / "prompts" / f"{prompt.replace(' ', '_')}.jsonl",
            Sampling(max_tokens=MAX_TOKENS),
        )
        found[prompt] = asdict(shares(named, given)) | {"problems": len(named)}
        print(prompt, found[prompt], flush=True)
    Path(__file__).with_name("prompts.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
