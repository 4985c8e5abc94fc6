"""How `make env` installs: by uv where it can stand in for pip, which keeps to pip's configuration."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("install", ROOT / "requirements" / "install.py")
install = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(install)

BEST = ["--index-strategy", "unsafe-best-match"]


def test_variables_overrule_the_commands_section_and_that_the_global_one():
    listed = (
        ":env:.find-links='/c'\nglobal.find-links='/a'\nglobal.timeout='5'\ninstall.find-links='/b'\n"
        "install.index-url='https://example.org/a=b'\n:env:.default-timeout='9'\ndownload.no-index='true'\n"
    )
    assert install.pip_settings(listed) == {
        "find-links": "/c",
        "index-url": "https://example.org/a=b",
        "timeout": "9",
    }
    assert install.pip_settings("") == {}


def test_what_pip_itself_lists_is_understood(tmp_path):
    (tmp_path / "pip.conf").write_text("[global]\nfind-links = /a\nextra-index-url =\n  https://one\n  https://two\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environment = kept | {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "PIP_FIND_LINKS": "/b /it's"}
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    found = install.pip_settings(listed)
    assert found["find-links"] == "/b /it's" and found["extra-index-url"].split() == ["https://one", "https://two"]
    assert found["config-file"] == str(tmp_path / "pip.conf")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, (BEST, {})),
        ({"index-url": "https://a"}, (BEST, {"UV_INDEX_URL": "https://a"})),
        ({"find-links": "/a\n/b"}, ([*BEST, "--find-links", "/a", "--find-links", "/b"], {})),
        ({"extra-index-url": "https://a"}, ([*BEST, "--extra-index-url", "https://a"], {})),
        ({"constraint": "/c.txt"}, ([*BEST, "--constraint", "/c.txt"], {})),
        ({"cert": "/c.pem", "timeout": "9"}, (BEST, {"SSL_CERT_FILE": "/c.pem", "UV_HTTP_TIMEOUT": "9"})),
        ({"disable-pip-version-check": "1", "config-file": "/pip.conf"}, (BEST, {})),
        ({"no-index": "true"}, None),
        ({"index-url": "https://a", "proxy": "https://b"}, None),
    ],
)
def test_uv_is_told_what_pip_is_told_or_is_not_asked(settings, told):
    assert install.for_uv(settings) == told


@pytest.fixture
def commands(monkeypatch):
    """Run `main`: (its exit code, the commands, the environment of uv's), with uv there or not, and able or not."""

    def run(listed="", uv="/bin/uv", uv_code=0, pip_code=0):
        made, environments = [], []

        def record(command, env=None, **settings):
            made.append(command)
            environments.append(env)
            code = uv_code if command[0] == uv else pip_code
            return subprocess.CompletedProcess(command, 0 if "config" in command else code, stdout=listed)

        monkeypatch.setattr(shutil, "which", lambda name: uv if name == "uv" else None)
        monkeypatch.setattr(subprocess, "run", record)
        code = install.main(["--no-deps", "-r", "cpu.txt"])
        asked = [(made[i], environments[i]) for i in range(len(made)) if "config" not in made[i]]
        return code, [command for command, _ in asked], asked[0][1]

    return run


PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install", "--no-deps", "-r", "cpu.txt"]


def test_without_uv_pip_installs_as_ever(commands):
    assert commands(uv=None, pip_code=3) == (3, [PIP], None)


def test_uv_installs_into_the_environment_that_asks(commands, monkeypatch):
    monkeypatch.setenv("UV_HTTP_TIMEOUT", "77")
    code, (command,), environment = commands(
        "global.find-links='/w'\nglobal.timeout='5'\nglobal.index-url='https://a'\n"
    )
    assert code == 0
    assert command[:6] == ["/bin/uv", "pip", "install", "-q", "--python", sys.executable]
    assert command[6:] == ["--compile-bytecode", *BEST, "--find-links", "/w", "--no-deps", "-r", "cpu.txt"]
    assert environment["UV_INDEX_URL"] == "https://a" and environment["PATH"] == os.environ["PATH"]
    assert environment["UV_HTTP_TIMEOUT"] == "77"  # the user's own word to uv


def test_where_pip_is_told_more_than_uv_can_be_pip_installs(commands):
    assert commands("global.proxy='https://b'\n")[:2] == (0, [PIP])


def test_where_uv_fails_pip_installs_and_says_so(commands, capfd):
    code, (first, second), _ = commands(uv_code=2, pip_code=0)
    assert (code, first[0], second) == (0, "/bin/uv", PIP)
    assert "uv has failed; pip installs" in capfd.readouterr().err
    assert commands(uv_code=2, pip_code=4)[0] == 4


def test_make_installs_by_it_into_the_environment(tmp_path):
    done = subprocess.run(
        ["make", "-n", "env", f"VENV={tmp_path}"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    lines = [line for line in done.stdout.splitlines() if " requirements/install.py " in line]
    assert len(lines) == 4 and "bin/pip" not in done.stdout
    assert all(line.startswith(f"{tmp_path}/bin/python requirements/install.py ") for line in lines)
    assert [line for line in lines if "--no-deps" not in line] == [lines[0]] and "torch==" in lines[0]
