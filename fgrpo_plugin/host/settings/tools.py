"""Whether verl's workers can load the tools of a run."""

import contextlib
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from fgrpo_plugin.foreign_text import say
from fgrpo_plugin.host.settings.reading import workers_environment
from fgrpo_plugin.host.settings.workers import (
    attribute,
    content,
    file_of,
    imported,
    one_line,
    refuse_or_say,
    value,
)

MULTI_TURN = "actor_rollout_ref.rollout.multi_turn"
LISTED, FUNCTIONS = f"{MULTI_TURN}.tool_config_path", f"{MULTI_TURN}.function_tool_path"


def check_tools(config: DictConfig) -> None:
    """Look at the files of tools; those with a life of their own are not made here, since that may start servers.

    Args:
        config: verl's whole configuration.

    Raises:
        ValueError: names the setting, the reason and the remedy.
    """
    if path := OmegaConf.select(config, LISTED):
        found = content(config, LISTED)
        if found is not None:
            tools: Any = None
            known = True
            if isinstance(found, DictConfig):
                tools, known = value(config, found, "tools", whole=False)
            if known and not isinstance(tools, ListConfig):
                raise ValueError(f"{LISTED}={path}: it must hold a list `tools`, each with class_name and config.")
            for number in range(len(tools) if known else 0):
                if (problem := _tool_problem(config, tools, number)) is not None:
                    raise ValueError(f"{LISTED}={path}: tool {number}: {problem}.")
    if path := OmegaConf.select(config, FUNCTIONS):
        _check_functions(config, path)


def _tool_problem(config: DictConfig, tools: ListConfig, number: int) -> str | None:
    """Return why a worker could not make this tool, as far as that can be told without making it."""
    from verl.tools.schemas import OpenAIFunctionToolSchema
    from verl.tools.tool_registry import ToolType

    tool, known = value(config, tools, f"[{number}]", whole=False)
    if not known:
        return None
    if not isinstance(tool, DictConfig):
        return "it is no section with class_name and config"
    kind, known = value(config, tool, "config.type")
    if known and kind not in (kinds := [one.value for one in ToolType]):
        return f"its config.type is {kind!r}; verl knows {', '.join(kinds)}"
    schema, known = value(config, tool, "tool_schema")
    try:
        if known and schema is not None:
            OpenAIFunctionToolSchema.model_validate(schema)
    except ValueError as error:
        return f"its tool_schema is none that verl reads ({' '.join(str(error).split())[:200]})"
    name, known = value(config, tool, "class_name")
    return imported(config, str(name), attribute)[1] if known else None


def _check_functions(config: DictConfig, path: str) -> None:
    from verl.tools.tool_registry import load_all_tools

    file = file_of(config, FUNCTIONS)
    if file is None:
        return
    try:
        with workers_environment(config), _nothing_registered():
            found = load_all_tools(tool_config_path=None, function_tool_path=str(file))
    except (Exception, SystemExit) as error:
        refuse_or_say(config, f"{FUNCTIONS}={path}: its tools cannot be loaded ({one_line(error)})", error)
        return
    if not found:  # verl goes on; or a module that this process had imported before registers them
        say(
            f"fgrpo-plugin: {FUNCTIONS}={path}: it has no function with @function_tool of its own, so that verl takes "
            "no tool from it, unless a module that it imports has some."
        )


@contextlib.contextmanager
def _nothing_registered() -> Iterator[None]:
    """verl's workers load the tools first; here a reward function may have imported, and so registered, the same."""
    from verl.tools import function_tool

    registries = (function_tool.FUNCTION_TOOL_REGISTRY, function_tool._LOADED_FUNCTION_TOOL_PATHS)
    before = [dict(registry) for registry in registries]
    for registry in registries:
        registry.clear()
    try:
        yield
    finally:
        for registry, entries in zip(registries, before, strict=True):
            registry.clear()
            registry.update(entries)
