"""Ends a run at the first response that gets no usable reward.

Without this verl drops a response whose reward function raises, and its group gets smaller without a word; its
rate-limited manager makes 0 of an error and of a timeout, by which a right response counts as a wrong one; NaN goes
into the group's mean.
"""

import asyncio
import contextlib
import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from types import ModuleType
from typing import Any

from omegaconf import OmegaConf

from fgrpo_plugin.host.contract import BAD_REWARD
from fgrpo_plugin.host.settings.reading import is_f_divergence
from fgrpo_plugin.host.settings.rewards import CUSTOM, unusable_reward

HELD = 30.0
"""Seconds for the driver to end the run, before verl hears of the error and goes on without the response."""


class BadReward(ValueError):
    """A response has no usable reward; the message names data source, reward function and value."""


class _Raised(Exception):
    """What a reward function has raised, where asyncio would not pass it on."""


class _News:
    """The first sentence of a reward worker, and who waits for it."""

    def __init__(self) -> None:
        self.said, self.there = "", asyncio.Event()

    def tell(self, sentence: str) -> None:
        self.said = self.said or sentence
        self.there.set()


def refuse_bad_rewards(reward_loop: ModuleType) -> None:
    """Make ``RewardLoopWorker`` of verl's module refuse them, and tell the driver, which waits for `BAD_REWARD`.

    What it raises alone would end the session of one response. Other algorithms are left alone.
    """
    worker = reward_loop.RewardLoopWorker
    stock, stock_start = worker.compute_score, worker._init_reward_fn

    @wraps(stock_start)
    def _init_reward_fn(self: Any) -> None:
        stock_start(self)
        function = getattr(self.reward_manager, "compute_score", None)  # a manager of the user's own need not have it
        if is_f_divergence(self.config) and callable(function):
            self.reward_manager.compute_score = _raising_errors(function)

    @wraps(stock)
    async def compute_score(self: Any, data: Any) -> Any:
        if not is_f_divergence(self.config):
            return await stock(self, data)
        try:
            result = await stock(self, data)
        except Exception as error:
            known = "" if isinstance(error, _Raised) else f"{type(error).__name__}: "
            problem = f"has raised {known}{_one_line(error)}"
            cause: Exception | None = error
        else:
            problem, cause = _problem(result), None
        if not problem:
            return result
        sentence = (
            f"data_source={_source(data)!r}: {_function(self.config)} {problem} for the response "
            f"{_response(self, data)}; the run ends here, because any number in its place would change the group's "
            "advantages. Make the function give a finite number for every response."
        )
        _news(self).tell(sentence)
        await asyncio.sleep(HELD)
        raise BadReward(sentence) from cause

    async def wait_for_bad_reward(self: Any) -> str:
        """Return the first sentence, once there is one."""
        await _news(self).there.wait()
        return _news(self).said

    worker._init_reward_fn, worker.compute_score = _init_reward_fn, compute_score
    setattr(worker, BAD_REWARD, wait_for_bad_reward)


def _raising_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """A reward function whose every exception reaches who waits for it.

    In a thread asyncio cannot pass StopIteration on, and the wait has no end; SystemExit ends the worker's event loop,
    and CancelledError looks like the cancelling of the wait.
    """
    if inspect.iscoroutinefunction(function):

        @wraps(function)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            try:
                return await function(*args, **kwargs)
            except Exception:
                raise
            except BaseException as error:
                task = asyncio.current_task()
                if isinstance(error, GeneratorExit) or (task is not None and task.cancelling()):  # verl's limit of time
                    raise
                raise _raised(error) from error

        return awaited

    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            if isinstance(error, Exception) and not isinstance(error, StopIteration):
                raise
            raise _raised(error) from error

    return called


def _raised(error: BaseException) -> _Raised:
    return _Raised(f"{type(error).__name__}: {_one_line(error)}")


def _news(worker: Any) -> _News:
    return vars(worker).setdefault("_fgrpo_news", _News())


def _problem(result: Any) -> str:
    """Return what is wrong with what a reward manager gave, or ""."""
    if not isinstance(result, Mapping) or "reward_score" not in result:  # of a reward manager of one's own
        return f"has come to nothing: the reward manager has given {_shown(result)}, without a reward_score,"
    info = result.get("reward_extra_info") or {}
    # Of verl's rate-limited manager, which gives 0 then; a function's own dictionary always has a score.
    if "score" not in info and info.get("timeout") is True:
        return "has not answered within +reward.timeout, in seconds (verl would count 0)"
    if "score" not in info and "error" in info:
        return f"has raised an error (verl would count 0): {_one_line(info['error'])}"
    reason = unusable_reward(result["reward_score"])
    return f"has given {_shown(result['reward_score'])}, which {reason}," if reason else ""


def _shown(value: Any) -> str:
    with contextlib.suppress(Exception):  # of a number of thousands of digits Python writes none
        return f"{value!r:.80}"
    return f"something that cannot be shown, of type {type(value).__name__}"


def _function(config: Any) -> str:
    path = OmegaConf.select(config, f"{CUSTOM}.path")
    if path:
        name = OmegaConf.select(config, f"{CUSTOM}.name", default="compute_score")
        return f"the reward function {name} of {path}"
    if OmegaConf.select(config, "reward.reward_model.enable"):
        return f"the reward model {OmegaConf.select(config, 'reward.reward_model.model_path')}"
    return "verl's own reward function"


def _source(data: Any) -> str:
    with contextlib.suppress(KeyError, IndexError, TypeError):
        return str(data.non_tensor_batch["data_source"][-1])
    return "unknown"


def _response(worker: Any, data: Any) -> str:
    with contextlib.suppress(Exception):  # it is for the reader alone
        text = worker.input_tokenizer.decode(data.batch["responses"][-1].tolist(), skip_special_tokens=True)
        return f"{text!r:.80}"
    return "(which cannot be shown)"


def _one_line(error: Any) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else "(no message)"
