"""What would fit where no advice does: shorter responses, another card, many more of the same."""

from collections.abc import Iterator
from dataclasses import replace

from fgrpo_plugin.plan.advice import advise
from fgrpo_plugin.plan.gpus import Gpu, find_gpu, known_gpus
from fgrpo_plugin.plan.moves import NODE
from fgrpo_plugin.plan.planned_run import Assumptions, PlannedRun

SHORTEST = 128
"""Tokens of a response below which nothing is offered."""
MOST_NODES = 128


def alternatives(run: PlannedRun, assumed: Assumptions) -> list[str]:
    """Smallest changes of the task or of the hardware that fit, with every other advice on top.

    Args:
        run: does not fit, whatever is advised.
        assumed: overheads.
    """
    found = (_shorter(run, assumed), _another_card(run, assumed), _many_more(run, assumed))
    return [sentence for sentence in found if sentence]


def _fits(run: PlannedRun, assumed: Assumptions) -> PlannedRun | None:
    """The run with the advice that makes it fit without more GPUs, if there is any."""
    advice = advise(run, assumed)
    return advice.run if advice.fits and advice.run.all_gpus == run.all_gpus else None


def _shorter(run: PlannedRun, assumed: Assumptions) -> str | None:
    for length in _halved(run.response_length):
        mean = run.mean_response and min(run.mean_response, length)
        if _fits(replace(run, response_length=length, mean_response=mean), assumed):
            return f"responses of up to {length} tokens on these GPUs (data.max_response_length={length})."
    return None


def _halved(length: int) -> Iterator[int]:
    while (length := length // 2) >= SHORTEST:
        yield length


def _another_card(run: PlannedRun, assumed: Assumptions) -> str | None:
    cards: list[Gpu] = sorted((find_gpu(name) for name in known_gpus()), key=lambda card: (card.memory, card.tflops))
    for card in cards:
        if card.memory > run.gpu.memory and _fits(replace(run, gpu=card), assumed):
            return f"{run.all_gpus} x {card.name} ({card.memory_gib:g} GiB): the smallest card of the table that fits."
    return None


def _many_more(run: PlannedRun, assumed: Assumptions) -> str | None:
    nodes, size = run.nodes, run.gpus_per_node
    while nodes <= MOST_NODES:
        nodes, size = (nodes, size * 2) if size * 2 <= NODE else (nodes * 2, size)
        try:
            more = replace(run, nodes=nodes, gpus_per_node=size)
        except ValueError:  # more ranks than the rows can be shared among
            return None
        if _fits(more, assumed):
            return f"{more.all_gpus} x {run.gpu.name} ({nodes} x {size})."
    return None
