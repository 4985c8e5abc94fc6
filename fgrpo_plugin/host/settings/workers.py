"""What the run's workers will load, looked at here first; what they alone have is said to be unknown, not refused."""

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fgrpo_plugin.foreign_text import say
from fgrpo_plugin.host.settings.reading import workers_environment

_RUNTIME = "ray_kwargs.ray_init.runtime_env"
_ADDRESS = "ray_kwargs.ray_init.address"
_CODE = ("working_dir", "py_modules", "pip", "uv", "conda", "py_executable", "container", "image_uri")


def workers_own_code(config: DictConfig) -> str | None:
    """The setting by which workers have code or files that this process may lack, or None."""
    for name in _CODE:
        if OmegaConf.select(config, f"{_RUNTIME}.{name}"):
            return f"{_RUNTIME}.{name}"
    for name, address in ((_ADDRESS, OmegaConf.select(config, _ADDRESS)), ("RAY_ADDRESS", os.getenv("RAY_ADDRESS"))):
        if str(address).startswith("ray://"):
            return name
    return None


def registers_more(config: DictConfig) -> str | None:
    """The setting whose modules, which the workers alone import, may register names with verl, or None."""
    for name in ("VERL_USE_EXTERNAL_MODULES", "VERL_USE_EXTERNAL_PLUGINS"):
        value = OmegaConf.select(config, f"{_RUNTIME}.env_vars.{name}")
        if value and str(value) != os.environ.get(name):
            return f"{_RUNTIME}.env_vars.{name}"
    for name in ("actor_rollout_ref.model.external_lib", "data.custom_cls.path"):
        if OmegaConf.select(config, name):
            return name
    return workers_own_code(config)


def say_unknown(what: str, why: str) -> None:
    """One line of what only the workers can tell."""
    say(f"fgrpo-plugin: {what}, which may hold for this process alone, because of {why}; the workers tell.")


def refuse_or_say(config: DictConfig, problem: str, error: BaseException | None = None) -> None:
    """Refuse what could not be loaded here, or say so where only the workers can tell.

    Raises:
        ValueError: workers have no code or files that this process lacks.
    """
    if (why := workers_own_code(config)) is None:
        raise ValueError(f"{problem}.") from error
    say_unknown(problem, why)


def one_line(error: BaseException) -> str:
    """The cause of an error, on one line."""
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[0]:.200}"


def imported(config: DictConfig, name: str, find: Callable[[str], Any]) -> tuple[Any, str | None]:
    """Return what a worker imports under this name, and why it could not; neither where only the workers can tell.

    Args:
        config: verl's whole configuration.
        name: dotted.
        find: what verl looks it up with.
    """
    try:
        with workers_environment(config):
            return find(name), None
    except (Exception, SystemExit) as error:
        problem = f"the class {name} cannot be imported ({one_line(error)})"
    if (why := workers_own_code(config)) is not None:
        say_unknown(problem, why)
        return None, None
    return None, problem


def module_of(config: DictConfig, setting: str) -> Any:
    """Import the file or ``pkg://`` module that a setting names, as verl does; None where only the workers can tell.

    Raises:
        ValueError: it cannot be imported.
    """
    from verl.utils.import_utils import load_module

    path = OmegaConf.select(config, setting)
    try:
        with workers_environment(config):
            return load_module(path)
    except (Exception, SystemExit) as error:
        refuse_or_say(config, f"{setting}={path}: cannot be imported ({one_line(error)})", error)
        return None


def object_of(config: DictConfig, setting: str, name: str) -> Any:
    """Return what one setting names in the module that another one does; None where only the workers can tell.

    Raises:
        ValueError: the module cannot be imported, or has no such name.
    """
    module, wanted = module_of(config, setting), str(OmegaConf.select(config, name))
    if module is not None and not hasattr(module, wanted):
        raise ValueError(f"{setting}={OmegaConf.select(config, setting)}: there is no {wanted!r} in it; set {name}.")
    return getattr(module, wanted, None)


def attribute(name: str) -> Any:
    """`module.name`, as verl looks up tools and managers: a class inside of another one is not found."""
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def file_of(config: DictConfig, setting: str) -> Path | None:
    """The file that a setting names, where verl's workers look for it; None where only they can tell.

    Raises:
        ValueError: there is none.
    """
    from verl.experimental.agent_loop.utils import resolve_config_path  # where verl 0.9.0 has it, too

    path = str(OmegaConf.select(config, setting))
    try:
        file = Path(resolve_config_path(path))
        if file.is_file():
            return file
    except FileNotFoundError:
        pass
    why = workers_own_code(config)
    if why is None and not os.path.isabs(path):  # the nodes of a cluster that is there have a working directory too
        why = _ADDRESS if OmegaConf.select(config, _ADDRESS) else "RAY_ADDRESS" if os.getenv("RAY_ADDRESS") else None
    if why is not None:
        say_unknown(f"{setting}={path}: there is no such file", why)
        return None
    if Path(path).is_file():
        raise ValueError(f"{setting}={path}: verl looks for it in the working directory alone; give its full path.")
    raise ValueError(f"{setting}={path}: there is no such file; give its full path.")


def content(config: DictConfig, setting: str) -> DictConfig | ListConfig | None:
    """Read the YAML file that a setting names, its ``${...}`` as they stand; None where only workers can tell.

    Raises:
        ValueError: names the setting and the reason.
    """
    file = file_of(config, setting)
    if file is None:
        return None
    try:
        return OmegaConf.load(file)
    except Exception as error:  # of whatever kind YAML raises
        raise ValueError(
            f"{setting}={OmegaConf.select(config, setting)}: cannot be read ({one_line(error)})."
        ) from error


def value(config: DictConfig, section: Any, key: str, *, whole: bool = True) -> tuple[Any, bool]:
    """Return a key's value in the workers, and whether it is known: a ``${...}`` may lead to what they alone have.

    Args:
        config: verl's whole configuration.
        section: of a file.
        key: in it.
        whole: with all that is in it, as plain objects; else a section as it stands.
    """
    try:
        with workers_environment(config):
            found = OmegaConf.select(section, key)
            plain = whole and OmegaConf.is_config(found)
            return (OmegaConf.to_container(found, resolve=True) if plain else found), True
    except (OmegaConfBaseException, KeyError) as error:
        say_unknown(f"{key} cannot be read ({one_line(error)})", "a ${...} in it")
        return None, False
