"""Whether verl's logger has the account that it will ask for, minutes later."""

import os
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from omegaconf import OmegaConf

CREDENTIALS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
WITHOUT_ACCOUNT = ("offline", "disabled", "dryrun")


def missing_account(config: Any) -> str | None:
    """A sentence where the run logs to wandb and nothing here gives it an account; a remote Ray may have one.

    Args:
        config: verl's whole configuration.
    """
    given = OmegaConf.select(config, "trainer.logger")
    if "wandb" not in ([given] if isinstance(given, str) else given or []):
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
