"""Whether verl's trackers are there, and have the account that they will ask for minutes later."""

import os
from importlib.util import find_spec
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from omegaconf import OmegaConf

from fgrpo_plugin.host.settings.workers import refuse_or_say

CREDENTIALS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
WITHOUT_ACCOUNT = ("offline", "disabled", "dryrun")


PACKAGES = {
    "wandb": "wandb",
    "tracking": "wandb",  # its former name
    "mlflow": "mlflow",
    "swanlab": "swanlab",
    "vemlp_wandb": "volcengine_ml_platform",
    "tensorboard": "tensorboard",
    "clearml": "clearml",
    "trackio": "trackio",
    "rl_insight": "rl_insight",
}
"""Which package verl imports for a tracker."""


def trackers(config: Any) -> list[str]:
    """The names in ``trainer.logger``, a name or a list of them."""
    given = OmegaConf.select(config, "trainer.logger")
    return [given] if isinstance(given, str) else list(given or [])


def check_trackers(config: Any) -> None:
    """Refuse trackers that verl does not know or that are not installed, on which it stops with the models loaded.

    Raises:
        ValueError: names the setting, the tracker and those that are known.
    """
    from verl.utils.tracking import Tracking

    for name in trackers(config):
        if name not in (*Tracking.supported_backend, "tracking"):
            known = ", ".join(Tracking.supported_backend)
            raise ValueError(f"trainer.logger: {name} is not a tracker of verl; choose among {known}.")
        package = PACKAGES.get(name)
        if package is not None and find_spec(package) is None:
            missing = f"trainer.logger: {name} needs the package {package}, which is not installed"
            refuse_or_say(config, f"{missing}; install it, or leave {name} out")


def missing_account(config: Any) -> str | None:
    """A sentence where the run logs to wandb and nothing here gives it an account; a remote Ray may have one.

    Args:
        config: verl's whole configuration.
    """
    if not {"wandb", "tracking"} & set(trackers(config)):
        return None
    of_ray = OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env.env_vars") or {}
    variables: dict[str, Any] = {**os.environ, **(OmegaConf.to_container(of_ray) if of_ray else {})}  # type: ignore[dict-item]
    host = urlparse(variables.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    if (
        any(variables.get(name) for name in CREDENTIALS)
        or variables.get("WANDB_MODE") in WITHOUT_ACCOUNT
        or _in_netrc(host)
    ):
        return None
    return (
        "trainer.logger includes wandb, as verl's default does, but no account was found on this machine: where Ray's "
        "workers have none either, verl stops once the models are loaded; set trainer.logger=[console], "
        "WANDB_MODE=offline or WANDB_API_KEY."
    )


def _in_netrc(host: str) -> bool:
    """Return whether a file in which `wandb login` keeps keys has one of that host, or cannot be read."""
    for file in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        try:
            if file and netrc(Path(file).expanduser()).authenticators(host):
                return True
        except FileNotFoundError:
            continue
        except (OSError, NetrcParseError):
            return True
    return False
