"""Make the tables of docs/engines.md from what tests measured:  python docs/make/engines.py

`make figures` runs those tests and keeps what they measure in docs/make/engines.json.
"""

import json
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
FIGURES = HERE / "engines.json"
BF16 = "bf16, against its own single rank"
# engine, split, dtype, bound, name of the figure
SPLITS = (
    ("FSDP2", "gradient accumulation", "float32", "1e-5", "FSDP, gradient accumulation"),
    ("FSDP2", "dynamic batch size", "float32", "1e-5", "FSDP, dynamic batch size"),
    ("FSDP2", "2 data-parallel ranks", "float32", "1e-5", "FSDP, two ranks"),
    ("FSDP2", "sequence packing", "float32", "1e-5", "FSDP, packing"),
    ("FSDP2", "Ulysses sequence parallel 2, packed", "float32", "1e-5", "FSDP, Ulysses"),
    (
        "FSDP2",
        "fused kernels (torch's, tied head), dynamic batch size",
        "float32",
        "1e-5",
        "FSDP, tied head, fused kernels",
    ),
    ("FSDP2", "4 ranks: 2 data-parallel, Ulysses 2, packed", "float32", "1e-5", "FSDP, four ranks, two ranks, Ulysses"),
    (
        "FSDP2",
        "the same, weights sharded over pairs of ranks (`fsdp_size=2`)",
        "float32",
        "1e-5",
        "FSDP, four ranks, two ranks, Ulysses, sharded by two",
    ),
    (
        "FSDP2",
        "mixture of experts, dynamic batch size",
        "float32",
        "1e-5",
        "FSDP, mixture of experts, dynamic batch size",
    ),
    ("FSDP2", "mixture of experts, 2 data-parallel ranks", "float32", "1e-5", "FSDP, mixture of experts, two ranks"),
    ("FSDP2", "LoRA, gradient accumulation", "float32", "1e-5", "FSDP, LoRA"),
    ("FSDP2", "LoRA, 2 data-parallel ranks", "float32", "1e-5", "FSDP, LoRA, two ranks"),
    ("FSDP 1", "gradient accumulation", "float32", "1e-5", "FSDP, FSDP 1, gradient accumulation"),
    ("FSDP 1", "2 data-parallel ranks", "float32", "1e-5", "FSDP, FSDP 1, two ranks"),
    ("Megatron", "1 rank, dynamic batch size", "float32", "1e-5", "Megatron, one rank"),
    ("Megatron", "tensor parallel 2 (with its sequence parallel)", "float32", "1e-5", "Megatron, tensor parallel"),
    ("Megatron", "pipeline parallel 2", "float32", "1e-5", "Megatron, pipeline parallel"),
    ("Megatron", "sequence packing", "float32", "1e-5", "Megatron, packing"),
    ("Megatron", "2 data-parallel ranks", "float32", "1e-5", "Megatron, data parallel"),
    (
        "Megatron",
        "4 ranks: tensor parallel 2, pipeline parallel 2",
        "float32",
        "1e-5",
        "Megatron, tensor and pipeline parallel",
    ),
    (
        "Megatron",
        "4 ranks: tensor parallel 2, 2 data-parallel ranks",
        "float32",
        "1e-5",
        "Megatron, tensor and data parallel",
    ),
    (
        "Megatron",
        "pipeline parallel 2, each stage in two parts (virtual)",
        "float32",
        "1e-5",
        "Megatron, four layers, virtual pipeline",
    ),
    (
        "Megatron",
        "mixture of experts, 1 rank, dynamic batch size",
        "float32",
        "1e-5",
        "Megatron, mixture of experts, one rank",
    ),
    (
        "Megatron",
        "mixture of experts, expert parallel 2",
        "float32",
        "1e-5",
        "Megatron, mixture of experts, expert parallel",
    ),
    (
        "Megatron",
        "4 ranks: expert parallel 2, pipeline parallel 2",
        "float32",
        "1e-5",
        "Megatron, mixture of experts, expert and pipeline parallel",
    ),
    ("Megatron", "context parallel 2", "float32", "1e-5", "Megatron, context parallel"),
    ("Megatron", "context parallel 2, packed", "float32", "1e-5", "Megatron, context parallel, packing"),
    (
        "Megatron",
        "context parallel 2, packed, per-token regime",
        "float32",
        "1e-5, after verl's factor",
        "Megatron, per token",
    ),
    ("Megatron", "1 rank", "bf16, against FSDP2 in float32", "2e-2", "Megatron, bf16 against FSDP2 in float32"),
    ("Megatron", "tensor parallel 2", BF16, "2e-2", "Megatron, bf16, tensor parallel against bf16 on one rank"),
    ("Megatron", "pipeline parallel 2", BF16, "2e-2", "Megatron, bf16, pipeline parallel against bf16 on one rank"),
)
PLAIN = tuple(
    (shown, trained, f"`{preset}`, {divergence}", f"plain loop, {model}, {trained}, {preset} {divergence}")
    for shown, model, cases in (
        (
            "random Llama, 3 layers",
            "small",
            (("stable", "pearson"), ("paper", "kl"), ("released", "jensen_shannon")),
        ),
        ("SmolLM2-135M", "SmolLM2", (("stable", "pearson"), ("paper", "kl"))),
    )
    for trained in ("full", "LoRA")
    for preset, divergence in cases
)
RUNS = (
    ("FSDP2, the same run again on verl with the shims' patches in place of the shims", "patched"),
    ("FSDP2, 2 data-parallel ranks", "FSDP2_two_ranks"),
    ("FSDP 1", "FSDP_1"),
    ("Megatron, 1 rank", "Megatron"),
    ("Megatron, tensor parallel 2", "tensor"),
    ("Megatron, pipeline parallel 2", "Megatron_pipeline_parallel"),
    ("Megatron, tensor parallel 2, killed after step 3 and resumed from the checkpoint of step 2", "killed"),
)


def tables(figures: dict[str, dict[str, float]]) -> dict[str, str]:
    """File name of each table -> its text."""
    splits = [["engine", "split", "dtype", "bound", "f-GRPO", "f-HAL"], *_by_loss(SPLITS, figures)]
    plain = [["model", "trained", "preset, divergence", "f-GRPO", "f-HAL"], *_by_loss(PLAIN, figures)]
    runs = [["engine", "difference", "actor against vLLM, nats"]]
    for label, name in RUNS:
        runs.append([label, *(_shown(figures[f"run, {name}"][kind]) for kind in ("difference", "actor against vLLM"))])
    made = {"engines_splits.md": splits, "engines_plain.md": plain, "engines_runs.md": runs}
    return {file: _markdown(rows) for file, rows in made.items()}


def _by_loss(rows: Sequence[tuple[str, ...]], figures: dict[str, dict[str, float]]) -> list[list[str]]:
    return [[*cells, *(_shown(figures[name][loss]) for loss in ("f_grpo", "f_hal"))] for *cells, name in rows]


def _shown(value: float) -> str:
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits}e{int(exponent)}"


def _markdown(rows: list[list[str]]) -> str:
    head, *body = rows
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *body))


if __name__ == "__main__":
    for file, text in tables(json.loads(FIGURES.read_text())).items():
        (HERE / file).write_text(text)
