"""verl's own tool agent loop on the CPU: responses with tokens in them that the model did not write."""

import math
from pathlib import Path

import pytest
import torch

from tests.e2e.host_runs import STEPS, F, Host, steps
from tests.e2e.tool_agent import DUMP

pytestmark = [pytest.mark.e2e, pytest.mark.long]

PROMPTS, SAMPLES, BETA = 8, 8, 0.1
LOSS = "actor_rollout_ref.actor.policy_loss.f_divergence"
MULTI_TURN = "actor_rollout_ref.rollout.multi_turn"


def _loss(rows: dict[str, torch.Tensor], mask: torch.Tensor) -> float:
    """L_fGRPO of variational kl, from the definition: -g(r) = -r where a > 0, f*(g(r)) = e^(r-1) where a < 0."""
    total = 0.0
    if not len(mask):  # preference rows alone
        return total
    for i, advantage in enumerate(rows["advantage"].tolist()):
        own = [t for t in range(mask.shape[1]) if mask[i, t]]
        r = BETA * math.fsum((rows["log_prob"][i, t] - rows["ref_log_prob"][i, t]).item() for t in own)
        if own and advantage:
            total += abs(advantage) * (-r if advantage > 0 else math.exp(r - 1))
    return total / rows["denominator"][0].item()


def _filled(mask: torch.Tensor) -> torch.Tensor:
    """The mask without its holes: all up to the last token that the model wrote."""
    return mask.flip(-1).cummax(dim=-1).values.flip(-1)


@pytest.mark.parametrize(("name", "lam"), [("tools", 0), ("tools_hybrid", 0.5)])
def test_what_the_tool_wrote_is_left_out_of_the_loss(host: Host, tmp_path: Path, name, lam):
    run = host.finish(
        name,
        "actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent",
        f"{MULTI_TURN}.enable=true",
        f"{MULTI_TURN}.format=every_other_turn",
        f"{MULTI_TURN}.function_tool_path={Path(__file__).parent / 'look_up.py'}",
        f"{MULTI_TURN}.max_assistant_turns=3",
        "data.max_response_length=24",
        "actor_rollout_ref.actor.optim.lr=1e-3",
        f"{LOSS}.divergence=kl",
        f"{LOSS}.weighting=none",
        f"{LOSS}.beta={BETA}",
        f"{LOSS}.lam={lam}",
        modules=["tests.e2e.tool_agent"],
        environment={DUMP: str(tmp_path)},
    )
    found = dict(steps(run))
    assert list(found) == list(range(1, STEPS + 1))
    batches = [torch.load(file) for file in sorted(tmp_path.iterdir())]
    each = len(batches) // STEPS
    for step, data in found.items():
        on_policy = batches[(step - 1) * each : step * each]
        assert sum(len(rows["mask"]) for rows in on_policy) == PROMPTS * SAMPLES
        with_holes = sum(int((_filled(rows["mask"]) & ~rows["mask"]).any(dim=-1).sum()) for rows in on_policy)
        assert with_holes > PROMPTS
        exact = math.fsum(_loss(rows, rows["mask"]) for rows in on_policy)
        assert data[F + "on_policy_loss"] == pytest.approx(exact, rel=1e-4, abs=1e-6)
        if step == STEPS:
            assert abs(exact - math.fsum(_loss(rows, _filled(rows["mask"])) for rows in on_policy)) > 1e-3
