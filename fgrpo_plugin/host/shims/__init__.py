"""What the shims share: a check that a function of verl is the one that a shim was written for."""

import hashlib
import inspect
import pkgutil
from collections.abc import Callable, Collection
from importlib.metadata import version
from typing import Any

from fgrpo_plugin.foreign_text import say
from fgrpo_plugin.host.contract import APPLIED, REFUSED, REPLACED_SOURCES, USED_SOURCES
from fgrpo_plugin.pinned import VERL


def source_hash(obj: Callable[..., Any]) -> str:
    """The SHA-256 of the source text of `obj`, in hexadecimal."""
    return hashlib.sha256(inspect.getsource(obj).encode()).hexdigest()


def known_source(
    obj: Callable[..., Any], *, hashes: Collection[str], what: str, remedy: str, distribution: str = "verl"
) -> None:
    """Refuse a function of verl that no shim was written for.

    Args:
        obj: verl's function or class.
        hashes: what `source_hash` gives for each version of it that the shim knows.
        what: its dotted name, for the message.
        remedy: what the user can do, as an imperative clause.
        distribution: the installed distribution that it comes from.

    Raises:
        RuntimeError: if its source is none of the known ones.
    """
    found = source_hash(obj)
    if found not in hashes:
        raise RuntimeError(
            f"{what} of the installed {distribution} {version(distribution)} is not a version of that function which "
            f"this plugin knows (source {found[:12]}): {remedy}."
        )


def require_replaced(obj: Callable[..., Any], name: str, patch: str) -> None:
    """Refuse to replace a function of verl whose source is none that the shim was written for.

    Args:
        obj: the function, as it stands in the module that was just imported.
        name: its key in `REPLACED_SOURCES`.
        patch: file name of the patch that stands for the shim.
    """
    known_source(obj, hashes=REPLACED_SOURCES[name], what=name.replace(":", "."), remedy=patch_remedy(patch))


def require_used() -> None:
    """Refuse a verl in which something that the driver overrides, calls or relies on has another source."""
    remedy = f"install verl=={VERL}; f-GRPO's part of an update was written around that version of it"
    for name, hashes in USED_SOURCES.items():
        known_source(pkgutil.resolve_name(name), hashes=hashes, what=name.replace(":", "."), remedy=remedy)


def patch_remedy(patch: str) -> str:
    """Return what to do where a shim does not fit, for `known_source`: `patch` is its file's name."""
    return f"install verl=={VERL}, or apply {patch} of patches/main to this version"


def apply_checked(name: str, apply: Callable[[Any], bool], module: Any) -> None:
    """Run one shim and note what became of it.

    Args:
        name: the shim's module name, also the name in ``patches/``.
        apply: adapts the module of verl; returns False where verl already has the feature.
        module: verl module, just imported.
    """
    try:
        APPLIED[name] = "applied" if apply(module) else "not needed"
    except Exception as error:  # whatever a verl that we do not know throws: its other algorithms must go on
        refuse(name, error)


def refuse(name: str, error: Exception) -> None:
    """Note why f-GRPO cannot run on this verl, and say so: verl hides a plugin's errors at DEBUG level."""
    known = isinstance(error, RuntimeError)
    REFUSED[name] = str(error) if known else f"{name} does not fit this verl ({type(error).__name__}: {error})."
    say(f"fgrpo-plugin: this verl does not fit f_grpo: {REFUSED[name]}", error=True)
