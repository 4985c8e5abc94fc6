"""Whether verl's agent loops and their tools can be loaded, and give one output a session, which f-GRPO needs."""

import collections.abc
import inspect
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fgrpo_plugin.host.settings.reading import workers_environment

AGENT = "actor_rollout_ref.rollout.agent"
MULTI_TURN = "actor_rollout_ref.rollout.multi_turn"
COLUMN = "agent_name"
"""verl's column for the agent loop of one prompt."""


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
        # A manager of the user's own starts what loops it likes.
        self._unknown = bool(OmegaConf.select(config, f"{AGENT}.agent_loop_manager_class"))
        self._targets = {} if self._unknown else self._known()
        if not self._unknown:
            _check_tools(config)

    def _known(self) -> dict[str, str]:
        """Name -> class, of verl's own loops and of those in the user's file."""
        import verl.experimental.agent_loop  # noqa: F401  (registers verl's)
        from verl.experimental.agent_loop.agent_loop import _agent_loop_registry

        known = {name: str(loop["_target_"]) for name, loop in _agent_loop_registry.items()}
        setting = f"{AGENT}.agent_loop_config_path"
        path = OmegaConf.select(self._config, setting)
        if not path:
            return known
        loops = _load(setting, path)
        if not isinstance(loops, list) or not all(isinstance(loop, Mapping) for loop in loops):
            raise ValueError(f"{setting}={path}: it must be a list of agent loops, each with name and _target_.")
        for number, loop in enumerate(loops):
            if not loop.get("name") or not loop.get("_target_"):
                raise ValueError(f"{setting}={path}: loop {number} has no name or no _target_ (its class); add it.")
            known[str(loop["name"])] = str(loop["_target_"])
        return known

    def problem(self, row: Mapping[str, Any]) -> str | None:
        """Why the agent loop of this row cannot be used, or None.

        Args:
            row: of a data file; without the column `agent_name` it has the run's default loop.
        """
        own = COLUMN in row
        name = row[COLUMN] if own else OmegaConf.select(self._config, f"{AGENT}.default_agent_loop")
        if self._unknown or (name is None and not own):
            return None
        if name not in self._looked_at:
            self._looked_at[name] = self._problem(name)
        reason = self._looked_at[name]
        setting = COLUMN if own else f"{AGENT}.default_agent_loop"
        return None if reason is None else f"{setting}={name}: {reason}"

    def _problem(self, name: Any) -> str | None:
        if name not in self._targets:
            return (
                f"there is no agent loop of this name; choose among {', '.join(sorted(self._targets))}, or add it to "
                f"the file of {AGENT}.agent_loop_config_path"
            )
        from hydra.utils import get_class

        target = self._targets[name]
        if (problem := _import_problem(self._config, target)) is not None:
            return problem
        if _may_be_a_list(_returned(get_class(target))):
            return (
                f"{target}.run says that it returns a list of outputs a session; f-GRPO and f-HAL take one row a "
                "response, so return one AgentLoopOutput (a mask of 0 leaves out what the model did not write), or "
                "set algorithm.adv_estimator=grpo"
            )
        return self._format_problem() if name == "tool_agent" else None

    def _format_problem(self) -> str | None:
        """Why tool calls could not be read from this model's responses, or None."""
        from verl.experimental.agent_loop.tool_parser import ToolParser

        style = OmegaConf.select(self._config, f"{MULTI_TURN}.format")
        if self._tokenizer is None:
            return None
        try:
            ToolParser.get_tool_parser(style, self._tokenizer)
        except Exception as error:  # of whatever kind a parser raises that misses its tokens
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            return f"{MULTI_TURN}.format={style} cannot be used with this tokenizer ({reason:.200}); choose another"
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
    if (problem := loops.problem({})) is not None:
        raise ValueError(f"{problem}.")
    return loops


def _check_tools(config: DictConfig) -> None:
    """Look at the files of tools; those with a life of their own are not made here, since that may start servers."""
    setting = f"{MULTI_TURN}.tool_config_path"
    if path := OmegaConf.select(config, setting):
        tools = _load(setting, path)
        if not isinstance(tools, Mapping) or not isinstance(tools.get("tools"), list):
            raise ValueError(
                f"{setting}={path}: it must hold a list `tools`, each with class_name, config, tool_schema."
            )
        for tool in tools["tools"]:
            if (problem := _import_problem(config, str(tool.get("class_name")))) is not None:
                raise ValueError(f"{setting}={path}: {problem}.")
    setting = f"{MULTI_TURN}.function_tool_path"
    if path := OmegaConf.select(config, setting):
        from verl.tools.tool_registry import load_all_tools

        file = _resolved(setting, path)
        try:
            with workers_environment(config):
                found = load_all_tools(tool_config_path=None, function_tool_path=str(file))
        except (Exception, SystemExit) as error:
            cause = error.__cause__ or error
            reason = (str(cause).strip().splitlines() or [""])[0]
            raise ValueError(
                f"{setting}={path}: its tools cannot be loaded ({type(cause).__name__}: {reason:.200})."
            ) from error
        if not found:
            raise ValueError(f"{setting}={path}: it has no function with @function_tool, so there are no tools.")


def _import_problem(config: DictConfig, name: str) -> str | None:
    """Why the workers could not import this class, or None."""
    from hydra.utils import get_class

    try:
        with workers_environment(config):
            get_class(name)
    except (Exception, SystemExit) as error:
        cause = error.__cause__ or error
        reason = (str(cause).strip().splitlines() or [""])[0]
        return f"the class {name} cannot be imported ({type(cause).__name__}: {reason:.200})"
    return None


def _resolved(setting: str, path: str) -> Path:
    """Where verl looks for such a file."""
    from verl.utils.import_utils import resolve_config_path

    try:
        file = Path(resolve_config_path(str(path)))
    except FileNotFoundError:
        file = Path(path)
    if not file.is_file():
        raise ValueError(f"{setting}={path}: there is no such file; give its full path.")
    return file


def _load(setting: str, path: str) -> Any:
    file = _resolved(setting, path)
    try:
        return OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except Exception as error:  # of whatever kind YAML raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{setting}={path}: cannot be read ({reason:.200}).") from error


def _returned(loop: Any) -> Any:
    """What `run` is annotated to return; None where nothing is said."""
    run = getattr(loop, "run", None)
    try:
        return typing.get_type_hints(run).get("return")
    except Exception:  # names that exist for type checkers alone
        return getattr(inspect.unwrap(run), "__annotations__", {}).get("return") if callable(run) else None


def _may_be_a_list(hint: Any) -> bool:
    """Whether an annotation names a list, or a union or a coroutine with one in it."""
    if isinstance(hint, str):
        return "list[" in hint.lower() or "sequence[" in hint.lower()
    origin = typing.get_origin(hint) or hint
    if origin in (typing.Union, types.UnionType, collections.abc.Coroutine, collections.abc.Awaitable):
        return any(map(_may_be_a_list, typing.get_args(hint)))
    return origin in (list, tuple, collections.abc.Sequence, collections.abc.Iterable)
