"""Options that ``fgrpo plan`` no longer shows, since each is a setting of verl or an assumption: still understood.

``--tp 8`` is rewritten to the override that it stands for, and a line says which.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

SHOWN = (
    "--recipe",
    "--model",
    "--gpu",
    "--gpus",
    "--nodes",
    "--mean-prompt",
    "--mean-response",
    "--assume",
    "--json",
    "--measure-cpu",
)
SWITCHES = ("param-offload", "optimizer-offload", "step-offload", "ref-offload", "fused-kernels")
ASSUMED = (
    "memory-gib",
    "tflops",
    "bandwidth-gb",
    "link-gb",
    "network-gb",
    "host-gb",
    "matmul",
    "bandwidth",
    "network",
    "decode-step-ms",
    "latency-us",
    "overhead-gib",
    "fragmentation",
    "host-memory-gb",
)
FIELDS = {"batch": "prompts", "n": "group", "fsdp-size": "shard", "max-num-seqs": "max_rows"} | {
    name: name.replace("-", "_")
    for name in (
        "engine",
        "tp",
        "pp",
        "cp",
        "ep",
        "etp",
        "sp",
        "minibatch",
        "prompt-length",
        "response-length",
        "tokens-per-gpu",
        "micro-rows",
        "lam",
        "preference-rows",
        "dtype",
        "recompute",
        "lora-rank",
        "rollout-tp",
        "utilization",
        *SWITCHES,
    )
}
"""Option -> field of `PlannedRun`."""
FOLLOWED = {
    "tokens_per_gpu": ("log_prob_tokens_per_gpu",),
    "micro_rows": ("log_prob_micro_rows",),
}
"""The option set these fields too."""


@dataclass
class Rewritten:
    """What a command line holds beside the options that are shown."""

    overrides: list[str] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    """Of a `PlannedRun`, from older options."""
    options: dict[str, str] = field(default_factory=dict)
    """Field -> the option that it came from."""
    assumed: list[str] = field(default_factory=list)
    """``key=value``."""


def rewrite(words: Sequence[str]) -> Rewritten:
    """Separate overrides from older options.

    Args:
        words: what is left of a command line once the options that are shown are gone.

    Raises:
        ValueError: an option that never was, or one without its value.
    """
    found, rest = Rewritten(), iter(words)
    for word in rest:
        if not word.startswith("--"):
            found.overrides.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        switch = name.removeprefix("no-")
        if switch in SWITCHES:
            if equals:
                raise ValueError(f"--{switch} takes no value; write --{switch} or --no-{switch}.")
            _set(found, FIELDS[switch], f"--{name}", switch == name)
        elif name in FIELDS or name in ASSUMED:
            given = value if equals else _following(rest, name)
            if name in ASSUMED:
                found.assumed.append(f"{name.replace('-', '_')}={given}")
            else:
                _set(found, FIELDS[name], f"--{name} {given}", given)
        else:
            near = get_close_matches(f"--{name}", SHOWN, n=2)
            meant = f"; nearest: {', '.join(near)}" if near else ""
            raise ValueError(
                f"--{name} is no option of fgrpo plan{meant}. Settings of the run are written as verl's overrides, for "
                "example trainer.nnodes=2, and efficiencies as --assume key=value."
            )
    return found


def _set(found: Rewritten, name: str, option: str, value: Any) -> None:
    if name == "micro_rows":
        found.fields |= {"dynamic_batch": False}
        found.options |= {"dynamic_batch": option}
    for each in (name, *FOLLOWED.get(name, ())):
        found.fields[each], found.options[each] = value, option


def _following(rest: Iterator[str], name: str) -> str:
    value = next(rest, None)
    if value is None or value.startswith("--"):
        raise ValueError(f"--{name} needs a value.")
    return value
