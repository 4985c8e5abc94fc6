"""``fgrpo plan``: options to a `PlannedRun`, and the report."""

import json
from pathlib import Path
from typing import Annotated

import typer


def plan(
    changes: Annotated[list[str] | None, typer.Argument(help="Hydra overrides of the host's configuration.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Config group of this package, for example math_7b.")] = None,
    model: Annotated[str | None, typer.Option(help="Known model, or the path of a config.json.")] = None,
    gpu: Annotated[str | None, typer.Option(help="Known GPU, or a YAML file that describes one.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs of a node.")] = None,
    nodes: Annotated[int | None, typer.Option(help="Nodes.")] = None,
    memory_gib: Annotated[float | None, typer.Option(help="Memory.")] = None,
    tflops: Annotated[float | None, typer.Option(help="Peak of dense bf16 matrix products, 1e12 FLOP/s.")] = None,
    bandwidth_gb: Annotated[float | None, typer.Option(help="Of its memory, 1e9 bytes/s.")] = None,
    link_gb: Annotated[float | None, typer.Option(help="To GPUs of its node, one direction, 1e9 bytes/s.")] = None,
    network_gb: Annotated[
        float | None, typer.Option(help="Its share of the network, one direction, 1e9 bytes/s.")
    ] = None,
    host_gb: Annotated[float | None, typer.Option(help="To host memory, one direction, 1e9 bytes/s.")] = None,
    engine: Annotated[str | None, typer.Option(help="fsdp, fsdp2 or megatron.")] = None,
    tp: Annotated[int | None, typer.Option(help="Megatron: tensor parallel.")] = None,
    pp: Annotated[int | None, typer.Option(help="Megatron: pipeline parallel.")] = None,
    cp: Annotated[int | None, typer.Option(help="Megatron: context parallel.")] = None,
    ep: Annotated[int | None, typer.Option(help="Megatron: expert parallel.")] = None,
    etp: Annotated[int | None, typer.Option(help="Megatron: tensor parallel of experts; tp if not given.")] = None,
    sp: Annotated[int | None, typer.Option(help="FSDP: Ulysses sequence parallel.")] = None,
    fsdp_size: Annotated[
        int | None, typer.Option(help="FSDP: GPUs that share one copy of the states; -1: all.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Prompts of a step.")] = None,
    minibatch: Annotated[int | None, typer.Option(help="Prompts of an optimiser step.")] = None,
    n: Annotated[int | None, typer.Option(help="Answers to a prompt.")] = None,
    prompt_length: Annotated[int | None, typer.Option(help="Longest prompt, tokens.")] = None,
    response_length: Annotated[int | None, typer.Option(help="Longest response, tokens.")] = None,
    mean_prompt: Annotated[int | None, typer.Option(help="Mean prompt, for times; the longest if not given.")] = None,
    mean_response: Annotated[
        int | None, typer.Option(help="Mean response, for times; the longest if not given.")
    ] = None,
    tokens_per_gpu: Annotated[int | None, typer.Option(help="Tokens of a dynamic micro-batch.")] = None,
    micro_rows: Annotated[int | None, typer.Option(help="Rows of a micro-batch; switches dynamic batches off.")] = None,
    lam: Annotated[float | None, typer.Option(help="lambda of f-HAL.")] = None,
    preference_rows: Annotated[int | None, typer.Option(help="Preference rows of an optimiser step.")] = None,
    dtype: Annotated[str | None, typer.Option(help="FSDP: stored weights, gradients, optimiser: fp32 or bf16.")] = None,
    param_offload: Annotated[bool | None, typer.Option(help="Weights on the host outside training.")] = None,
    optimizer_offload: Annotated[
        bool | None, typer.Option(help="Optimiser states on the host outside training.")
    ] = None,
    step_offload: Annotated[
        bool | None, typer.Option(help="Optimiser (FSDP2: weights too) on the host in training too.")
    ] = None,
    ref_offload: Annotated[bool | None, typer.Option(help="Megatron: reference on the host outside its pass.")] = None,
    recompute: Annotated[str | None, typer.Option(help="none, selective or full.")] = None,
    lora_rank: Annotated[int | None, typer.Option(help="LoRA.")] = None,
    fused_kernels: Annotated[bool | None, typer.Option(help="No logits of a whole micro-batch.")] = None,
    rollout_tp: Annotated[int | None, typer.Option(help="Tensor parallel of the rollout engine.")] = None,
    utilization: Annotated[float | None, typer.Option(help="gpu_memory_utilization.")] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="Rows that a replica decodes at a time.")] = None,
    matmul: Annotated[float | None, typer.Option(help="Share of peak that matrix products reach.")] = None,
    bandwidth: Annotated[float | None, typer.Option(help="Share of memory bandwidth that is reached.")] = None,
    network: Annotated[float | None, typer.Option(help="Share of the links' bandwidth that is reached.")] = None,
    decode_step_ms: Annotated[float | None, typer.Option(help="Fixed time of a decoding step.")] = None,
    latency_us: Annotated[float | None, typer.Option(help="Of a collective.")] = None,
    overhead_gib: Annotated[float | None, typer.Option(help="CUDA contexts and buffers.")] = None,
    fragmentation: Annotated[float | None, typer.Option(help="Share of the trainer's memory.")] = None,
    host_memory_gb: Annotated[float | None, typer.Option(help="Host memory bandwidth for a GPU, 1e9 bytes/s.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object; bytes and seconds.")] = False,
    measure_cpu: Annotated[
        Path | None, typer.Option(help="Measure this machine and write it there as a GPU (YAML); nothing else.")
    ] = None,
) -> None:
    """Predict memory and time of a run before its GPUs are booked; exit code 1 if it does not fit."""
    given = {key: value for key, value in locals().items() if value is not None}
    if measure_cpu is not None:
        _measure(measure_cpu)
        return
    if gpu is None:
        raise ValueError("name the GPU: --gpu H100 (or a YAML file that describes one).")
    from rich.console import Console

    from fgrpo_plugin.plan import report
    from fgrpo_plugin.plan.gpus import find_gpu
    from fgrpo_plugin.plan.planned_run import Assumptions, PlannedRun, check_fields

    device = find_gpu(gpu, **{key: given.get(key) for key in GPU_FIELDS})
    assumed = Assumptions(**{key: given[key] for key in ASSUMPTIONS if key in given})
    fields = {field: given[option] for option, field in FIELDS.items() if option in given}
    if "micro_rows" in fields:
        fields |= {"dynamic_batch": False, "log_prob_micro_rows": fields["micro_rows"]}
    if "tokens_per_gpu" in fields:
        fields["log_prob_tokens_per_gpu"] = fields["tokens_per_gpu"]
    lengths = {key: given[key] for key in ("mean_prompt", "mean_response") if key in given}
    if recipe is None and not changes:
        from fgrpo_plugin.model_shape import find_model

        if model is None:
            raise ValueError("name what to plan: --recipe math_7b, overrides of the host, or --model.")
        if lam and "preference_rows" not in fields:
            raise ValueError(f"--lam {lam} needs --preference-rows.")
        check_fields(fields, engine or PlannedRun.engine)
        if "batch" in given:
            fields.setdefault("minibatch", given["batch"])
        run = PlannedRun(model=find_model(model), gpu=device, **fields, **lengths)
        result = report.make_plan(run, assumed, notes=[])
    else:
        from fgrpo_plugin.host.settings.compose import compose
        from fgrpo_plugin.plan.compose import check_run, compose_run
        from fgrpo_plugin.plan.configuration import planned_run_from_config

        words, config = compose_run(recipe, changes or [], ({"model": model} if model else {}) | fields)
        notes = check_run(config)
        run, unmodelled = planned_run_from_config(config, device, **lengths)
        result = report.make_plan(run, assumed, recipe=words, notes=notes + unmodelled)
        if result.command != words:
            try:
                check_run(compose(result.command))
            except ValueError as error:
                result.notes.append(f"the run would refuse the advice: {error}")
    if as_json:
        print(json.dumps(report.as_json(result), indent=2))
    else:
        report.print_plan(result, Console())
    if not result.fits:
        raise typer.Exit(1)


def _measure(path: Path) -> None:
    from omegaconf import OmegaConf

    from fgrpo_plugin.plan.cpu import measure_cpu

    found = measure_cpu()
    OmegaConf.save(OmegaConf.create(found.described()), path)
    print(f"{found.tflops * 1000:.0f} GFLOP/s in float32, {found.bandwidth_gb:.1f} GB/s: use it with --gpu {path}")


GPU_FIELDS = ("memory_gib", "tflops", "bandwidth_gb", "link_gb", "network_gb", "host_gb")
ASSUMPTIONS = (
    "matmul",
    "bandwidth",
    "network",
    "decode_step_ms",
    "latency_us",
    "overhead_gib",
    "fragmentation",
    "host_memory_gb",
)
RENAMED = {"gpus": "gpus_per_node", "batch": "prompts", "n": "group", "fsdp_size": "shard", "max_num_seqs": "max_rows"}
SAME = (
    "nodes",
    "engine",
    "tp",
    "pp",
    "cp",
    "ep",
    "etp",
    "sp",
    "minibatch",
    "prompt_length",
    "response_length",
    "tokens_per_gpu",
    "micro_rows",
    "lam",
    "preference_rows",
    "dtype",
    "param_offload",
    "optimizer_offload",
    "step_offload",
    "ref_offload",
    "recompute",
    "lora_rank",
    "fused_kernels",
    "rollout_tp",
    "utilization",
)
FIELDS = RENAMED | {name: name for name in SAME}
"""Option -> field of `PlannedRun`."""
