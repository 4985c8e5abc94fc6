"""The loop of an evaluation: every model on every set is sampled, scored, and kept as what a table is made of."""

import contextlib
import errno
import fcntl
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fgrpo_plugin.eval.kept import Chats, Responses
from fgrpo_plugin.eval.scores import SCORES
from fgrpo_plugin.eval.sets import AskedSet, Item
from fgrpo_plugin.folders import write_whole
from fgrpo_plugin.foreign_text import without_private
from fgrpo_plugin.progress import Follow

Progress = Callable[[int, int], None]
Sampler = Callable[[str, Chats, Path, Progress], Responses]
"""Model, chats, output and progress -> responses."""
Scorer = Callable[[AskedSet[Item], Responses, Path, Follow], list[dict[str, Any]]]
"""A set, a model's responses, their file, and what tells of progress -> a row of scores for each prompt."""


def named_models(models: Sequence[str]) -> dict[str, str]:
    """Name in tables -> model; `name=model` names it, else the last part of its path does.

    Raises:
        ValueError: two have one name, or a name is no name of a folder.
    """
    found: dict[str, str] = {}
    for given in models:
        name, _, model = given.rpartition("=") if "=" in given else (Path(given).name, "", given)
        if not re.fullmatch(r"[\w.+@-]+", name) or name in (".", ".."):
            raise ValueError(f"MODEL {given}: {name!r} cannot be a folder's name; name it: NAME={model}.")
        if name in found:
            raise ValueError(f"two models are called {name}; name one: NAME={model}.")
        found[name] = model
    return found


def evaluate(
    models: Mapping[str, str],
    sets: Sequence[AskedSet[Item]],
    folder: Path,
    sample: Sampler,
    score: Scorer[Item],
    *,
    settings: Mapping[str, Any],
    follow: Follow,
) -> None:
    """Sample every model on every set, and write each one's scores beside its responses.

    Args:
        models: name -> folder, or name at the server.
        sets: of what is asked.
        folder: has `<model>/<set>.jsonl`, the responses, and `<model>/<set>.scores.json`.
        sample: gives a model's responses, and keeps them in a file.
        score: gives the rows of scores.
        settings: written into the scores; `sampling` and `scoring` are what two models' figures must share.
        follow: what is under way -> what is told how far it is.

    Raises:
        ValueError: a model could not be sampled, or `folder` holds responses of other settings.
    """
    with contextlib.ExitStack() as held:
        for name in models:
            held.enter_context(alone(folder / name))
        for (name, model), one in itertools.product(models.items(), sets):
            chats = {key: list(asked.chat) for key, asked in one.asked.items()}
            output, what = folder / name / f"{one.name}.jsonl", f"{name} on {one.name}"
            responses = sample(model, chats, output, follow(what))
            rows = score(one, responses, output, _within(what, follow))
            scores = {"model": name, "from": without_private(model), "set": one.name, **settings, "rows": rows}
            write_whole(output.with_name(f"{one.name}{SCORES}"), (json.dumps(scores, indent=1) + "\n").encode())


def _within(what: str, follow: Follow) -> Follow:
    return lambda part: follow(f"{what}: {part}")


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Refuse a folder that another evaluation writes: lines would be mixed. A dead one's claim ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY)
        if not os.access(folder, os.W_OK):
            os.close(held)
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ValueError(f"--output: {folder} cannot be written ({error.strerror}); name another folder.") from None
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another evaluation writes {folder} now; wait until it has ended, or name another --output."
            ) from None
        yield
    finally:
        os.close(held)
