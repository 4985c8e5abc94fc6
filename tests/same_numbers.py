"""Do this tree and an earlier commit compute the same numbers, bit for bit, on the same machine?

    python tests/same_numbers.py against COMMIT            # the default preset, f_grpo and f_hal, FSDP2 and Megatron
    python tests/same_numbers.py against COMMIT --set weighting=none --set level=token
    python tests/same_numbers.py against COMMIT --run      # and the log of a short run, from prompts to metrics

On this tree's rows of tests/frozen_rows.safetensors: what the driver attaches to each row, and loss, gradient and every
metric of one update in verl's own worker, as the driver divides them, bit for bit; with --run, the seeded f-HAL run of
tests/e2e within 1e-5. Each tree is measured by its own copy of this script, in a process of its own.
New names are listed; a number that is not the same, or is missing, makes the exit status 1.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "tests" / "frozen_rows.safetensors"
ON_POLICY, LAM = 16, 0.3
ENGINES = {"FSDP2": "cpu", "Megatron": "cpu_megatron"}
"""Engine -> the config group that selects it on the CPU."""
OPTIMISERS = {"FSDP2": {"optimizer": "SGD", "lr": 0.05}, "Megatron": {"optimizer": "adam", "lr": 0.001}}
RUN_TOLERANCE = 1e-5
LEFT_OUT = ("perf/", "mfu", "pearson_corr")
"""Of the run's log: times, memory, and a correlation of probabilities all near 1/300 (three digits in float32)."""


def dump(target: Path = ROWS) -> None:
    """Make the rows: 16 responses of four prompts with graded rewards, 12 preference rows, log-probs of each token."""
    import torch
    from safetensors.torch import save_file

    draw = torch.Generator().manual_seed(11)
    responses = [2, 3, 12, 4, 2, 5, 3, 2, 9, 2, 4, 3, 3, 2, 5, 10, 8, 3, 4, 11, 9, 2, 3, 7, 6, 6, 5, 8]
    prompts = [1 + i % 4 for i in range(len(responses))]
    total = sum(responses)
    save_file(
        {
            "prompts": torch.tensor(prompts),
            "responses": torch.tensor(responses),
            "tokens": torch.randint(3, 200, (total + sum(prompts),), generator=draw),
            "old_log_prob": -5.7 + 0.5 * torch.randn(total, generator=draw),
            "ref_log_prob": -5.7 + 0.5 * torch.randn(total, generator=draw),
            "rewards": (4 * torch.rand(ON_POLICY, generator=draw)).round() / 4,
        },
        target,
    )


def collect(rows: Path, engine_name: str, overrides: list[str]) -> dict[str, Any]:
    """Every number of the tree that is imported, by one engine."""
    sys.path.insert(0, os.getcwd())
    import numpy as np
    import torch
    from safetensors.torch import load_file

    from tests.support.worker import config, f_hal, in_order, join_process_group, make_model, nested, update

    torch.manual_seed(0)
    join_process_group()
    from tensordict import TensorDict
    from verl.utils.metric import reduce_metrics
    from verl.workers.engine_workers import ActorRolloutRefWorker

    from fgrpo_plugin.host.driver.joining import as_queue_rows, joined_order, preference_numbers
    from fgrpo_plugin.host.driver.rows import on_policy_fields, row_numbers
    from fgrpo_plugin.host.metrics import divide_sums
    from fgrpo_plugin.host.settings.reading import read_settings
    from fgrpo_plugin.preference.tokens import TokenRow

    data = load_file(rows)
    prompts, responses = data["prompts"].tolist(), data["responses"].tolist()
    tokens = data["tokens"].split([p + n for p, n in zip(prompts, responses, strict=True)])
    old, ref = (data[name].split(responses) for name in ("old_log_prob", "ref_log_prob"))
    off = len(responses) - ON_POLICY
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder, layers=2, hidden=32, key_value_heads=2)
        for name, batch in (("f_grpo", ON_POLICY), ("f_hal", len(responses))):
            more = [f"algorithm.adv_estimator={name}"] if name == "f_grpo" else f_hal(folder)
            more += [f"++actor_rollout_ref.actor.policy_loss.f_divergence.{entry}" for entry in overrides]
            if name == "f_hal":
                more += [f"+data.preference.batch_size={off}", f"++data.preference.cache_dir={folder}/cache"]
            section = "actor_rollout_ref.actor"
            more += [
                "data.train_batch_size=4",
                f"{section}.ppo_mini_batch_size=4",
                f"{section}.use_dynamic_bsz=true",
                f"{section}.ppo_max_token_len_per_gpu=40",
                *(f"{section}.optim.{key}={value}" for key, value in OPTIMISERS[engine_name].items()),
                f"{section}.optim.total_training_steps=10",
                "data.max_prompt_length=5",
                "data.max_response_length=12",
            ]
            composed = config(folder, *more, group=ENGINES[engine_name])
            settings = read_settings(composed.actor_rollout_ref.actor.policy_loss.f_divergence)
            everything = [
                TokenRow(t[:p], t[p:], i % 2 == 0, None, str(i))
                for i, (t, p) in enumerate(zip(tokens, prompts, strict=True))
            ]
            numbers, reported = row_numbers(
                rewards=data["rewards"],
                uids=np.array([f"p{i // 4}" for i in range(ON_POLICY)], dtype=object),
                response_mask=nested(torch.ones(n, dtype=torch.int64) for n in responses[:ON_POLICY]),
                old_log_prob=nested(old[:ON_POLICY]),
                minibatch=torch.zeros(ON_POLICY, dtype=torch.int64),
                padding=torch.zeros(ON_POLICY, dtype=torch.bool),
                settings=settings,
                normalize_by_std=True,
            )
            found |= {f"{name}, driver, {key}": value.double().tolist() for key, value in numbers.items()}
            on = as_queue_rows(everything[:ON_POLICY], ref[:ON_POLICY]) | numbers | on_policy_fields(ON_POLICY, LAM)
            ones = nested(torch.ones(n, dtype=torch.int64) for n in responses[:ON_POLICY])
            on |= {"response_mask": ones, "loss_mask": ones, "old_log_probs": nested(old[:ON_POLICY])}
            if name == "f_hal":
                extra = as_queue_rows(everything[ON_POLICY:], ref[ON_POLICY:])
                extra |= preference_numbers(everything[ON_POLICY:], settings, LAM)
                order = joined_order(ON_POLICY, 1, 1, off)
                batch_rows = in_order(order, on=TensorDict(on, ON_POLICY), off=TensorDict(extra, off))
            else:
                batch_rows = TensorDict(on, ON_POLICY)
            assert len(batch_rows) == batch
            worker = ActorRolloutRefWorker(composed.actor_rollout_ref, role="actor")
            worker.init_model()
            engine = worker.actor.engine
            gradient: dict[str, list[float]] = {}

            def keep(step: Any = engine.optimizer_step, engine: Any = engine, gradient: dict = gradient) -> Any:
                for module in engine.module if isinstance(engine.module, list) else [engine.module]:
                    for key, value in module.named_parameters():
                        held = value.main_grad if engine_name == "Megatron" else value.grad.full_tensor()
                        gradient[key] = held.double().flatten().tolist()
                return step()

            engine.optimizer_step = keep
            metrics = dict(update(worker, batch_rows)["metrics"])
            metrics = {key: value for key, value in metrics.items() if not key.startswith("perf/") and key != "mfu"}
            metrics = reduce_metrics(metrics)
            lam = LAM if name == "f_hal" else 0.0
            metrics |= reported | divide_sums(metrics, settings, lam=lam, compare_rollout=True)
            found |= {f"{name}, gradient, {key}": value for key, value in gradient.items()}
            found |= {f"{name}, metric, {key}": float(value) for key, value in metrics.items()}
    return found


def seeded_run() -> dict[str, Any]:
    """What the short f-HAL run of tests/e2e logs, but for `LEFT_OUT` and times: Ray, vLLM and FSDP2 (some 100 s)."""
    sys.path.insert(0, os.getcwd())
    from tests.e2e.host_runs import Host, steps

    with tempfile.TemporaryDirectory() as folder:
        run = Host(Path(folder)).finish("run")
        return {
            f"step {step}, {name}": value
            for step, data in steps(run)
            for name, value in data.items()
            if not name.startswith("timing") and not any(part in name for part in LEFT_OUT)
        }


def in_tree(tree: Path, *arguments: str) -> dict[str, Any]:
    """What this tree's copy of the script collects, in a process that imports the tree."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "found.json"
        command = [sys.executable, "-W", "ignore", "tests/same_numbers.py", "collect", str(target), *arguments]
        env = {**os.environ, "PYTHONPATH": str(tree), "VERL_PLATFORM": "cpu"}
        done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{tree}: {done.stderr[-3000:]}")
        return json.loads(target.read_text())


def compare(then: dict[str, Any], now: dict[str, Any], tolerance: float = 0.0) -> tuple[list[str], list[str]]:
    """(names whose number is not the same, new names); without a tolerance, to the last bit.

    The tolerance is relative, to 0.01 where a number is smaller.
    """

    def same(name: str) -> bool:
        if not tolerance:
            return now.get(name) == then[name]
        return name in now and abs(now[name] - then[name]) <= tolerance * max(abs(then[name]), 1e-2)

    return [name for name in then if not same(name)], [name for name in now if name not in then]


app = typer.Typer(add_completion=False)
Overrides = Annotated[list[str] | None, typer.Option("--set", help="A setting of f_divergence, name=value.")]


@app.command("collect")
def _collect(
    target: Path, rows: Path = ROWS, engine: str = "FSDP2", run: bool = False, overrides: Overrides = None
) -> None:
    """Used by `against`: the numbers of the tree in the working directory."""
    target.write_text(json.dumps(seeded_run() if run else collect(rows, engine, overrides or [])))


@app.command("against")
def against(commit: str, run: bool = False, overrides: Overrides = None) -> None:
    """Compare this tree with a commit; exit status 1 where a number differs."""
    more = [word for entry in overrides or [] for word in ("--set", entry)]
    parts = {name: (["--rows", str(ROWS), "--engine", name, *more], 0.0) for name in ENGINES}
    if run:
        parts["the seeded run"] = (["--run"], RUN_TOLERANCE)
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "-q", "--detach", str(tree), commit], cwd=ROOT, check=True)
        try:
            for name, (arguments, tolerance) in parts.items():
                then, now = in_tree(tree, *arguments), in_tree(ROOT, *arguments)
                different, new = compare(then, now, tolerance)
                bound = f"within {tolerance:g}" if tolerance else "to the last bit"
                print(f"{name}: {len(then)} numbers at {commit}, {len(different)} not the same {bound}, {len(new)} new")
                print("".join(f"  new: {name}\n" for name in new), end="")
                print("".join(f"  DIFFERENT: {name}: {then[name]} {now.get(name)}\n" for name in different), end="")
                failed |= bool(different)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)
    raise SystemExit(int(failed))


if __name__ == "__main__":
    app()
