"""Do this tree and an earlier commit compute the same numbers, bit for bit, on the same machine?

    python tests/same_numbers.py against a5e6b66            # the default preset, f_grpo and f_hal, FSDP2
    python tests/same_numbers.py against a5e6b66 --set weighting=none --set level=token

On the rows of tests/frozen_rows.safetensors: what the driver attaches to each row, and loss, gradient and every metric
of one update in verl's own worker, as the driver divides them. Each tree runs in a process of its own.
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


def collect(rows: Path, overrides: list[str]) -> dict[str, Any]:
    """Every number of the tree that is imported, as exact text."""
    sys.path.insert(0, os.getcwd())
    import numpy as np
    import torch
    from safetensors.torch import load_file

    from benchmarks.worker import config, f_hal, in_order, join_process_group, make_model, nested, update

    torch.manual_seed(0)
    join_process_group()
    from tensordict import TensorDict
    from verl.utils.metric import reduce_metrics
    from verl.workers.engine_workers import ActorRolloutRefWorker

    from fgrpo_plugin.host.config import read_settings
    from fgrpo_plugin.host.preferences import as_host_rows, joined_order, on_policy_fields, preference_numbers
    from fgrpo_plugin.host.trainer import divide_sums, row_numbers
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
                f"{section}.optim.optimizer=SGD",
                f"{section}.optim.lr=0.05",
                f"{section}.optim.total_training_steps=10",
                "data.max_prompt_length=5",
                "data.max_response_length=12",
            ]
            composed = config(folder, *more)
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
            on = as_host_rows(everything[:ON_POLICY], ref[:ON_POLICY]) | numbers | on_policy_fields(ON_POLICY, LAM)
            ones = nested(torch.ones(n, dtype=torch.int64) for n in responses[:ON_POLICY])
            on |= {"response_mask": ones, "loss_mask": ones, "old_log_probs": nested(old[:ON_POLICY])}
            if name == "f_hal":
                extra = as_host_rows(everything[ON_POLICY:], ref[ON_POLICY:])
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
                for key, value in engine.module.named_parameters():
                    gradient[key] = value.grad.full_tensor().double().flatten().tolist()
                return step()

            engine.optimizer_step = keep
            metrics = dict(update(worker, batch_rows)["metrics"])
            metrics = {key: value for key, value in metrics.items() if not key.startswith("perf/") and key != "mfu"}
            metrics = reduce_metrics(metrics)
            lam = {"lam": LAM if name == "f_hal" else 0.0} if "lam" in divide_sums.__annotations__ else {}
            metrics |= reported | divide_sums(metrics, settings, compare_rollout=True, **lam)
            found |= {f"{name}, gradient, {key}": value for key, value in gradient.items()}
            found |= {f"{name}, metric, {key}": float(value) for key, value in metrics.items()}
    return found


def in_tree(tree: Path, overrides: list[str]) -> dict[str, Any]:
    """`collect` by a process that imports this tree."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "found.json"
        command = [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), "collect", str(target)]
        command += [word for entry in overrides for word in ("--set", entry)]
        env = {**os.environ, "PYTHONPATH": str(tree), "VERL_PLATFORM": "cpu"}
        done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{tree}: {done.stderr[-3000:]}")
        return json.loads(target.read_text())


def compare(then: dict[str, Any], now: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(names whose number is not the same to the last bit, new names)."""
    return [name for name in then if now.get(name) != then[name]], [name for name in now if name not in then]


app = typer.Typer(add_completion=False)
Overrides = Annotated[list[str] | None, typer.Option("--set", help="A setting of f_divergence, name=value.")]


@app.command("collect")
def _collect(target: Path, overrides: Overrides = None) -> None:
    """Used by `against`: the numbers of the tree in the working directory."""
    target.write_text(json.dumps(collect(ROWS, overrides or [])))


@app.command("against")
def against(commit: str, overrides: Overrides = None) -> None:
    """Compare this tree with a commit; exit status 1 where a number differs."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "-q", "--detach", str(tree), commit], cwd=ROOT, check=True)
        try:
            then = in_tree(tree, overrides or [])
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)
    different, new = compare(then, in_tree(ROOT, overrides or []))
    print(f"{len(then)} entries at {commit}, {len(different)} of them not the same to the last bit, {len(new)} new")
    for name in new:
        print(f"  new: {name}")
    for name in different:
        print(f"  DIFFERENT: {name}")
    raise SystemExit(int(bool(different)))


if __name__ == "__main__":
    app()
