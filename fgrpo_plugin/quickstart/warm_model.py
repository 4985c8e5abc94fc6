"""The warmed-up model that a quick start begins with: that of the default seed comes with the package.

    python -m fgrpo_plugin.quickstart.warm_model     # makes the package's file anew: minutes on one core

The file holds the weights in float32 and, in its header, how they were made and how often the model is right. It counts
as made by this warm-up while its fingerprint is that of the code and of the data of the warm-up; a test fails where it
is not.
"""

import ast
import hashlib
import inspect
import json
import platform
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
import typer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

from fgrpo_plugin.folders import write_whole
from fgrpo_plugin.foreign_text import say
from fgrpo_plugin.quickstart import hybrid, task
from fgrpo_plugin.quickstart import model as tiny
from fgrpo_plugin.quickstart.model import Example, WarmUpResult, build_model, build_tokenizer, success_rates, warm_up
from fgrpo_plugin.quickstart.options import PACKAGED_SEED as SEED
from fgrpo_plugin.quickstart.options import QuickstartError

FILE = Path(__file__).with_name(f"warm_model_seed{SEED}.safetensors")
COMMAND = "python -m fgrpo_plugin.quickstart.warm_model"
DRAWS = 1000
"""Wrong labels that enter the fingerprint: enough that another way of drawing them is seen."""


@dataclass(frozen=True)
class Made:
    """What the header of the file says of its weights."""

    seed: int
    command: str
    fingerprint: str
    """Of the warm-up, see `fingerprint`."""
    weights: str
    """sha256 of the weights, so that damage is seen."""
    steps: int
    sampled_success: float
    """Probability of the right response on the training prompts that the warm-up probes."""
    heldout_sampled: float
    """The same on the 256 held-out prompts of the quick start's validation."""
    heldout_greedy: float
    """Share of these whose greedy response is right: the quick start's held-out accuracy before training."""
    cpu: str
    """Instructions that torch computed with, such as AVX512: others round otherwise, and the warm-up ends elsewhere."""
    python: str
    torch: str
    transformers: str


def make(
    seed: int, *, for_hybrid: bool = False, on_step: Callable[[int, float], None] | None = None
) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerBase, WarmUpResult]:
    """Build the tiny model and warm it up on the training pairs.

    Args:
        seed: of the weights, the batches and the wrong labels.
        for_hybrid: for the hybrid task of f-HAL: some wrong labels are bluffs, and the warm-up stops earlier.
        on_step: called with the number of steps done and the last probed success.
    """
    torch.set_num_threads(1)  # a model this small gains a third from two, and loses tenfold beside another load
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed)
    how: dict[str, Any] = {"wrong_answer": task.wrong_answer}
    if for_hybrid:
        how = {"wrong_answer": hybrid.wrong_answer, "target_success": hybrid.WARM_UP_SUCCESS}
    return model, tokenizer, warm_up(model, tokenizer, _examples(), seed=seed, **how, on_step=on_step)


def fingerprint(seed: int = SEED) -> str:
    """A hash of what the addition task's warmed-up model depends on, the same on every machine.

    That is the seed, the code of `model.py` (its comments and docstrings aside), the training pairs with their order,
    and how wrong labels are drawn. Versions of libraries are not part of it.
    """
    rng = random.Random(seed)
    examples = [(example.prompt, example.answer) for example in _examples()]
    wrong = [task.wrong_answer(rng.choice(examples)[1], rng) for _ in range(DRAWS)]
    parts = (seed, code_shape(inspect.getsource(tiny)), examples, wrong)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def code_shape(source: str) -> list[Any]:
    """The syntax tree of a module as JSON holds it, without comments, layout and docstrings.

    Empty fields are left out: later versions of Python add some.
    """

    def shape(node: Any) -> Any:
        if isinstance(node, list):
            return [shape(item) for item in node if not _is_docstring(item)]
        if not isinstance(node, ast.AST):
            return repr(node)
        fields = [(name, value) for name, value in ast.iter_fields(node) if value is not None and value != []]
        return [type(node).__name__, *([name, shape(value)] for name, value in fields)]

    return shape(ast.parse(source))


def _is_docstring(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def read(file: Path = FILE) -> tuple[dict[str, torch.Tensor], Made]:
    """Weights by name, and how they were made.

    Raises:
        QuickstartError: the file is missing or damaged.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            header = opened.metadata() or {}
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _damaged(file, " ".join(str(error).split())) from None
    try:
        made = Made(**json.loads(header["warm_up"]))
    except (KeyError, TypeError, ValueError):
        raise _damaged(file, "its header has no account of its warm-up") from None
    if _digest(weights) != made.weights:
        raise _damaged(file, "its weights are not those that were written")
    return weights, made


def packaged(file: Path = FILE) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerBase] | None:
    """The model that comes with the package, or None where it was made by another warm-up than this code's.

    Raises:
        QuickstartError: the file is missing or damaged.
    """
    weights, made = read(file)
    if made.fingerprint != fingerprint():
        return None
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, made.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # the tied output layer is the embedding's
            parameter.copy_(weights[name])
    return model.eval(), tokenizer


def write(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, result: WarmUpResult, seed: int, file: Path
) -> Made:
    """Write a warmed-up model and how it was made as one file."""
    weights = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
    sampled, greedy = success_rates(model, tokenizer, heldout_examples())
    made = Made(
        seed=seed,
        command=COMMAND,
        fingerprint=fingerprint(seed),
        weights=_digest(weights),
        steps=result.steps,
        sampled_success=round(result.sampled_success, 4),
        heldout_sampled=round(sampled, 4),
        heldout_greedy=round(greedy, 4),
        cpu=torch.backends.cpu.get_cpu_capability(),
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
    )
    write_whole(file, save(weights, {"warm_up": json.dumps(asdict(made))}))
    return made


def heldout_examples() -> list[Example]:
    """The prompts and answers of the quick start's validation."""
    return [Example(pair.prompt, pair.answer) for pair in task.heldout_sample()]


def _examples() -> list[Example]:
    train, _ = task.split_pairs()
    return [Example(pair.prompt, pair.answer) for pair in train]


def _digest(weights: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name} {weights[name].dtype} {tuple(weights[name].shape)}".encode())
        digest.update(weights[name].numpy().tobytes())
    return digest.hexdigest()


def _damaged(file: Path, reason: str) -> QuickstartError:
    return QuickstartError(
        f"{file}: the warmed-up model that comes with the package cannot be read ({reason}); install the package anew, "
        "or warm up again by --warm-up."
    )


def main() -> None:
    """Make the package's file anew, and print what its header says."""
    model, tokenizer, result = make(SEED, on_step=lambda step, success: say(f"{step} steps, {success:.2f}"))
    say(json.dumps(asdict(write(model, tokenizer, result, SEED, FILE))))


if __name__ == "__main__":
    typer.run(main)
