"""Whether verl's agent loops can be loaded, and give one output a session, which f-GRPO needs."""

import collections.abc
import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from fgrpo_plugin.foreign_text import say
from fgrpo_plugin.host.settings.reading import workers_environment
from fgrpo_plugin.host.settings.tools import MULTI_TURN, check_tools
from fgrpo_plugin.host.settings.workers import (
    attribute,
    content,
    imported,
    one_line,
    registers_more,
    say_unknown,
    value,
)

AGENT = "actor_rollout_ref.rollout.agent"
COLUMN = "agent_name"
"""verl's column for the agent loop of one prompt."""
DEFAULT, MANAGER, FILE = (
    f"{AGENT}.{name}" for name in ("default_agent_loop", "agent_loop_manager_class", "agent_loop_config_path")
)


class AgentLoops:
    """The agent loops that the rows of a run can name; each is looked at once, when it is first named.

    Args:
        config: verl's whole configuration.
        tokenizer: the run's, or None where it is not on this machine.

    Raises:
        ValueError: names the setting, the reason and the remedy.
    """

    def __init__(self, config: DictConfig, tokenizer: Any):
        self._config, self._tokenizer = config, tokenizer
        self._looked_at: dict[Any, str | None] = {}
        self._unknown = False
        self._entries: dict[Any, Any] = {}
        if manager := OmegaConf.select(config, MANAGER):  # one of the user's own starts what loops it likes
            self._unknown = True
            if (problem := imported(config, str(manager), attribute)[1]) is not None:
                raise ValueError(f"{MANAGER}={manager}: {problem}.")
            return
        check_tools(config)
        import verl.experimental.agent_loop  # noqa: F401  (registers verl's)
        from verl.experimental.agent_loop.agent_loop import _agent_loop_registry

        self._entries = {name: OmegaConf.create(dict(loop)) for name, loop in _agent_loop_registry.items()}
        if path := OmegaConf.select(config, FILE):
            self._add(path)

    def _add(self, path: str) -> None:
        """The loops of the user's file, which stand before those of the same name."""
        loops = content(self._config, FILE)
        if loops is None:
            self._unknown = True
            return
        if not loops:  # all of it is a comment
            return
        if not isinstance(loops, ListConfig) or not all(isinstance(loop, DictConfig) for loop in loops):
            raise ValueError(f"{FILE}={path}: it must be a list of agent loops, each with name and _target_.")
        for number, loop in enumerate(loops):
            name, known = value(self._config, loop, "name")
            self._unknown |= not known
            if known and (name is None or "_target_" not in loop):
                raise ValueError(f"{FILE}={path}: loop {number} has no name or no _target_ (its class); add it.")
            self._entries[name] = loop

    def problem(self, row: Mapping[str, Any], *, named: bool = False) -> str | None:
        """Return why the agent loop of this row cannot be used, or None.

        Args:
            row: of a data file; without the column `agent_name` it has the run's default loop.
            named: whether other rows of the data set have the column: verl fills it with None then.
        """
        own = named or COLUMN in row
        name, setting = (row.get(COLUMN), COLUMN) if own else (OmegaConf.select(self._config, DEFAULT), DEFAULT)
        if self._unknown:
            return None
        if not isinstance(name, str):
            more = ", while other rows have theirs" if named and COLUMN not in row else ""
            return f"{setting} is {name!r:.60}{more}; write the name of an agent loop"
        if name not in self._looked_at:
            self._looked_at[name] = self._problem(name)
        reason = self._looked_at[name]
        return None if reason is None else f"{setting}={name}: {reason}"

    def _problem(self, name: str) -> str | None:
        if name not in self._entries:
            if (why := registers_more(self._config)) is not None:
                say_unknown(f"there is no agent loop named {name}", why)
                return None
            return (
                f"there is no agent loop of this name; choose among {', '.join(sorted(map(str, self._entries)))}, or "
                f"add it to the file of {FILE}"
            )
        from hydra.utils import get_object

        entry = self._entries[name]
        target, known = value(self._config, entry, "_target_")
        if not known:
            return None
        loop, problem = imported(self._config, str(target), get_object)
        if problem is not None or loop is None:
            return problem
        if not callable(loop):
            return f"{target} is no class"
        if (problem := _call_problem(loop, entry)) is not None:
            return f"{target} {problem}"
        if not inspect.isclass(loop):  # a function that makes a loop
            return None
        if not callable(getattr(loop, "run", None)) or inspect.isabstract(loop):
            return f"{target} has no method run, or another one of AgentLoopBase's is missing"
        returned = _returned(loop)
        if _is_a_list(returned):
            return (
                f"{target}.run says that it returns a list of outputs a session; f-GRPO and f-HAL take one row a "
                "response, so return one AgentLoopOutput (a mask of 0 leaves out what the model did not write), or "
                "set algorithm.adv_estimator=grpo"
            )
        if _may_be_a_list(returned):
            say(
                f"fgrpo-plugin: {target}.run says that it may return a list of outputs a session: f-GRPO and f-HAL "
                "take one row a response, and end the run at the first session that gives several."
            )
        return self._format_problem(loop)

    def _format_problem(self, loop: type) -> str | None:
        """Return why tool calls could not be read from this model's responses, or None."""
        from verl.experimental.agent_loop.tool_agent_loop import ToolAgentLoop
        from verl.experimental.agent_loop.tool_parser import ToolParser

        # One that is made otherwise than verl's may read calls otherwise.
        made = inspect.getattr_static(loop, "__init__") is inspect.getattr_static(ToolAgentLoop, "__init__")
        if self._tokenizer is None or not issubclass(loop, ToolAgentLoop) or not made:
            return None
        style = OmegaConf.select(self._config, f"{MULTI_TURN}.format")
        try:
            with workers_environment(self._config):
                ToolParser.get_tool_parser(style, self._tokenizer)
        except Exception as error:  # of whatever kind a parser raises that misses its tokens
            problem = f"{MULTI_TURN}.format={style} cannot be used with this tokenizer ({one_line(error)})"
            if style not in ToolParser._registry and (why := registers_more(self._config)) is not None:
                say_unknown(problem, why)
                return None
            return f"{problem}; choose another"
        return None


def check_agent_loops(config: DictConfig, tokenizer: Any) -> AgentLoops:
    """Refuse agent loops and tools that would fail in verl's workers, after the models are loaded.

    Args:
        config: verl's whole configuration.
        tokenizer: the run's, or None where it is not on this machine.

    Returns:
        The loops, for rows that name one of them.

    Raises:
        ValueError: names the setting, the reason and the remedy.
    """
    loops = AgentLoops(config, tokenizer)
    # Without one every row has to name its own; the rows tell.
    if OmegaConf.select(config, DEFAULT) is not None and (problem := loops.problem({})) is not None:
        raise ValueError(f"{problem}.")
    return loops


def _call_problem(loop: Any, entry: Any) -> str | None:
    """Return why verl could not make the loop, by name, of what every loop is given and what the file says."""
    from verl.experimental.agent_loop import AgentLoopBase
    from verl.experimental.agent_loop.tool_agent_loop import ToolAgentLoop

    given = [*inspect.signature(AgentLoopBase.__init__).parameters.values()][1:]
    names = {one.name for one in given if one.kind is not one.VAR_KEYWORD}
    names |= {"tools"} & set(inspect.signature(ToolAgentLoop.__init__).parameters)
    names |= {str(key) for key in entry if not str(key).startswith("_")}
    if any(key in entry for key in ("_args_", "_partial_")):
        return None
    try:
        parameters = inspect.signature(loop)
    except (TypeError, ValueError):  # written in C: it cannot be told
        return None
    try:
        parameters.bind(**dict.fromkeys(names))
    except TypeError as error:
        return f"cannot be made as verl makes it, by name with {', '.join(sorted(names))} ({error}); give it **kwargs"
    return None


def _returned(loop: Any) -> Any:
    """Return what `run` is annotated to return; None where nothing is said."""
    run = loop.run
    try:
        return typing.get_type_hints(run).get("return")
    except Exception:  # names that exist for type checkers alone
        return getattr(inspect.unwrap(run), "__annotations__", {}).get("return")


def _is_a_list(hint: Any) -> bool:
    """Return whether an annotation names a list and nothing else, or a coroutine that gives one."""
    if isinstance(hint, str):
        return hint.lower().startswith(("list[", "sequence[")) and "|" not in hint
    origin = typing.get_origin(hint) or hint
    if origin in (collections.abc.Coroutine, collections.abc.Awaitable):
        return any(map(_is_a_list, typing.get_args(hint)[-1:]))
    return origin in (list, tuple, collections.abc.Sequence, collections.abc.Iterable)


def _may_be_a_list(hint: Any) -> bool:
    """Return whether one of several that an annotation names is a list."""
    if isinstance(hint, str):
        return "list[" in hint.lower() or "sequence[" in hint.lower()
    if typing.get_origin(hint) in (typing.Union, types.UnionType, collections.abc.Coroutine, collections.abc.Awaitable):
        return any(_is_a_list(part) or _may_be_a_list(part) for part in typing.get_args(hint))
    return False
