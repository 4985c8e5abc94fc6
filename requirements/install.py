"""Install into the environment whose Python runs this: by uv where it is on PATH and can stand in for pip, else by pip.

    .venv/bin/python requirements/install.py [arguments of `pip install`]

uv reads no pip.conf and no PIP_*, so what they say of sources is handed on to it: torch may come from there. Where they
say something that uv has no like of, or where uv fails, pip installs.
"""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

LISTS = {name: f"--{name}" for name in ("extra-index-url", "find-links", "constraint")}
"""Settings of pip's that add to what a command says -> uv's option."""
SINGLE = {"index-url": "UV_INDEX_URL", "cert": "SSL_CERT_FILE", "timeout": "UV_HTTP_TIMEOUT"}
"""Settings of pip's that a command may overrule -> uv's variable, which it may overrule too."""
SAME_NAME = {"default-timeout": "timeout"}
OF_PIP_ALONE = {
    "config-file",
    "disable-pip-version-check",
    "no-cache-dir",
    "progress-bar",
    "quiet",
    "retries",
    "root-user-action",
}
"""Settings that change nothing of what is installed."""


def pip_settings(listed: str) -> dict[str, str]:
    """What `pip config list` says of `pip install`: variables overrule the command's section, and that `[global]`."""
    found: dict[str, dict[str, str]] = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        found.setdefault(section, {})[SAME_NAME.get(name, name)] = str(ast.literal_eval(value))
    return found.get("global", {}) | found.get("install", {}) | found.get(":env:", {})


def for_uv(settings: dict[str, str]) -> tuple[list[str], dict[str, str]] | None:
    """Arguments and variables by which uv takes packages from where pip would, or None where it cannot be told."""
    arguments = ["--index-strategy", "unsafe-best-match"]  # pip looks through every index for the best version, too
    environment = {}
    for name, value in settings.items():
        if name in LISTS:
            arguments += [word for item in value.split() for word in (LISTS[name], item)]
        elif name in SINGLE:
            environment[SINGLE[name]] = value
        elif name not in OF_PIP_ALONE:
            return None
    return arguments, environment


def main(arguments: Sequence[str]) -> int:
    """Install; the exit code is that of what has installed."""
    uv = shutil.which("uv")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    if uv is not None:
        listed = subprocess.run([*pip, "config", "list"], check=True, capture_output=True, text=True).stdout
        told = for_uv(pip_settings(listed))
        if told is not None:
            # Compiled as pip does, or the first run would compile while the user waits.
            command = [
                uv,
                "pip",
                "install",
                "-q",
                "--python",
                sys.executable,
                "--compile-bytecode",
                *told[0],
                *arguments,
            ]
            if subprocess.run(command, env=told[1] | os.environ).returncode == 0:
                return 0
            print("uv has failed; pip installs", file=sys.stderr, flush=True)
    return subprocess.run([*pip, "-q", "install", *arguments]).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
