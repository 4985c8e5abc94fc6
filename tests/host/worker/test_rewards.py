"""Rewards that cannot be used, through verl's own reward worker and reward managers in this process, without Ray."""

import asyncio
import pickle

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from fgrpo_plugin.host.contract import BAD_REWARD
from fgrpo_plugin.host.worker import rewards
from fgrpo_plugin.host.worker.rewards import BadReward

FUNCTION = """
import asyncio, math
import numpy as np
import torch

class Own(Exception):
    pass

def compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs):
    return {value}

async def late(data_source, solution_str, ground_truth, extra_info, **kwargs):
    await asyncio.sleep(30)
    return 1.0

def fails(data_source, solution_str, ground_truth, extra_info, **kwargs):
    raise Own("the judge\\nsays no")

def ends(data_source, solution_str, ground_truth, extra_info, **kwargs):
    raise {value}

async def ends_async(data_source, solution_str, ground_truth, extra_info, **kwargs):
    raise {value}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from fgrpo_plugin.quickstart.model import build_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def score(folder, tmp_path, stock_config, monkeypatch):
    """What verl's reward worker gives for a response, with the reward function that returns this value."""
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
    from verl.protocol import DataProto

    monkeypatch.setattr(rewards, "HELD", 0.0)

    def scored(value="1.0", *overrides, name="compute_score", estimator="f_grpo"):
        (tmp_path / "own.py").write_text(FUNCTION.replace("{value}", value))
        config = stock_config(
            f"algorithm.adv_estimator={estimator}",
            f"actor_rollout_ref.model.path={folder}",
            f"reward.custom_reward_function.path={tmp_path / 'own.py'}",
            f"reward.custom_reward_function.name={name}",
            *overrides,
        )
        tokens = torch.tensor([[9, 8, 7]])
        batch = {"prompts": tokens, "responses": tokens, "attention_mask": torch.ones(1, 6, dtype=torch.int64)}
        others = {
            "data_source": np.array(["my/problems"], dtype=object),
            "reward_model": np.array([{"ground_truth": "2"}], dtype=object),
            "extra_info": np.array([{}], dtype=object),
        }

        async def ask():
            worker = RewardLoopWorker(config)
            worker.reward_manager.loop = asyncio.get_running_loop()
            waiting = asyncio.ensure_future(getattr(worker, BAD_REWARD)())
            await asyncio.sleep(0)
            try:
                result = await worker.compute_score(DataProto(TensorDict(batch, batch_size=1), others))
            except Exception as error:
                await asyncio.sleep(0.01)
                return error, waiting.done() and waiting.result()
            told = waiting.done()
            waiting.cancel()
            return result["reward_score"], told

        return asyncio.run(asyncio.wait_for(ask(), 20))

    return scored


@pytest.mark.parametrize(
    "value",
    ["0", "1.5", "True", "np.float32(2)", "torch.tensor(0.5)", "{'score': -1.0, 'error': 'counted'}", "2.0**53"],
)
def test_a_number_is_passed_on(score, value):
    found, told = score(value)
    expected = eval(value, {"np": np, "torch": torch})
    assert float(found) == float(expected["score"] if isinstance(expected, dict) else expected) and not told


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("None", "None, which is no finite number"),
        ("float('nan')", "nan, which is no finite number"),
        ("-math.inf", "-inf, which is no finite number"),
        ("'0.5'", "'0.5', which is no finite number"),
        ("[1.0]", "[1.0], which is no finite number"),
        ("{'score': None}", "None, which is no finite number"),
        ("1e30", "1e+30, which is so large that the group's other rewards vanish beside it"),
        ("1e300", "1e+300, which is so large"),
        ("10**400", "1000000000000000000000000000000000000000000000000000000000000000000000000000000"),
        ("10**5000", "something that cannot be shown, of type int, which is so large"),
    ],
)
def test_what_is_no_usable_number_ends_the_run_with_its_source_function_and_value(score, tmp_path, value, shown):
    error, told = score(value)
    assert isinstance(error, BadReward)
    sentence = str(error)
    assert sentence.startswith(
        f"data_source='my/problems': the reward function compute_score of {tmp_path / 'own.py'} has given {shown}"
    )
    assert sentence.endswith("Make the function give a finite number for every response.")
    assert told == sentence  # to the driver, which ends the run


@pytest.mark.parametrize("manager", ["naive", "dapo", "rate_limited"])
def test_a_function_that_raises_ends_the_run(score, manager):
    """verl's rate-limited manager would count 0, the others would lose the response."""
    error, told = score("1", f"reward.reward_manager.name={manager}", name="fails")
    assert isinstance(error, BadReward) and told == str(error)
    how = (
        "has raised an error (verl would count 0): says no" if manager == "rate_limited" else "has raised Own: says no"
    )
    assert f"{how} for the response '" in told
    assert str(pickle.loads(pickle.dumps(error))) == told  # through Ray


@pytest.mark.parametrize("given", [None, {}, {"reward": 1.0}, 1.0])
def test_a_reward_manager_that_gives_no_reward_ends_the_run(score, monkeypatch, given):
    """verl fails at it where the response is put together, and drops the response."""
    from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

    async def run_single(self, data):
        return given

    monkeypatch.setattr(NaiveRewardManager, "run_single", run_single)
    error, told = score()
    assert isinstance(error, BadReward) and told == str(error)
    assert f"the reward manager has given {given!r}, without a reward_score, for the response '" in told


@pytest.mark.parametrize("manager", ["naive", "rate_limited"])
@pytest.mark.parametrize("value", ["StopIteration()", "SystemExit('usage')", "asyncio.CancelledError()"])
@pytest.mark.parametrize("name", ["ends", "ends_async"])
def test_what_asyncio_does_not_pass_on_ends_the_run_as_any_other_error(score, manager, value, name):
    """`next` without a default in a plain function: the thread's StopIteration would let verl wait for ever."""
    error, told = score(value, f"reward.reward_manager.name={manager}", name=name)
    assert isinstance(error, BadReward) and told == str(error)
    how = "has raised an error (verl would count 0)" if manager == "rate_limited" else "has raised"
    # Python makes a RuntimeError of a coroutine's StopIteration by itself.
    shown = value.removeprefix("asyncio.").split("(")[0]
    known = "coroutine raised StopIteration" if (name, shown) == ("ends_async", "StopIteration") else f"{shown}: "
    assert how in told and known in told


def test_an_answer_that_comes_too_late_ends_the_run(score):
    given = ("reward.reward_manager.name=rate_limited", "+reward.timeout=0.05")
    error, told = score("1", *given, name="late")
    assert (
        isinstance(error, BadReward)
        and "has not answered within +reward.timeout, in seconds (verl would count 0)" in told
    )


def test_other_algorithms_have_verls_own_treatment(score):
    found, told = score("float('nan')", estimator="grpo")
    assert np.isnan(found) and not told
    assert score("1", "reward.reward_manager.name=rate_limited", name="fails", estimator="grpo") == (0.0, False)


def test_the_driver_has_time_to_end_the_run_before_verl_goes_on_without_the_response(score, monkeypatch):
    from fgrpo_plugin.host.driver import liveness

    held = []
    sleep = asyncio.sleep
    monkeypatch.setattr(rewards, "HELD", 30.0)
    monkeypatch.setattr(rewards.asyncio, "sleep", lambda seconds: (held.append(seconds), sleep(0))[1])
    assert isinstance(score("None")[0], BadReward)
    assert 30.0 in held and liveness.EVERY + 2 < 30.0


def test_verls_own_function_and_a_reward_model_are_called_so(stock_config, inputs):
    assert rewards._function(stock_config(*inputs)) == "verl's own reward function"
    model = ("reward.reward_model.enable=true", "reward.reward_model.model_path=/models/judge")
    assert rewards._function(stock_config(*inputs, *model)) == "the reward model /models/judge"
