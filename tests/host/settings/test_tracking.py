"""A run that will ask for an account at wandb is told so before Ray starts."""

import inspect
from pathlib import Path

import pytest

from fgrpo_plugin.host.settings.switch import complete
from fgrpo_plugin.host.settings.tracking import PACKAGES, check_trackers, missing_account
from tests.support.overrides import SWITCH


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """A user without any account."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_run_with_verls_default_logger_is_told_once_and_keeps_it(stock_config, inputs, capsys):
    config = stock_config(*inputs, SWITCH)
    complete(config)
    said = [line for line in capsys.readouterr().out.splitlines() if "wandb" in line]
    assert len(said) == 1 and said[0].startswith("fgrpo-plugin: trainer.logger includes wandb, as verl's default does")
    assert "set trainer.logger=[console], WANDB_MODE=offline or WANDB_API_KEY." in said[0]
    assert config.trainer.logger == ["console", "wandb"]
    complete(stock_config(*inputs, SWITCH, "trainer.logger=[console]"))
    assert "wandb" not in capsys.readouterr().out


@pytest.mark.parametrize("logger", ["console", "[console]", "[console,tensorboard]", "[]", "null"])
def test_other_loggers_need_none(stock_config, logger):
    assert missing_account(stock_config(f"trainer.logger={logger}")) is None


@pytest.mark.parametrize("logger", ["wandb", "[wandb]", "[console,wandb]"])
@pytest.mark.parametrize("variable", ["WANDB_MODE=online", "WANDB_API_KEY=", "WANDB_ENTITY=a"])
def test_without_an_account_it_is_missed(stock_config, monkeypatch, logger, variable):
    monkeypatch.setenv(*variable.split("="))
    assert "no account was found" in missing_account(stock_config(f"trainer.logger={logger}"))


@pytest.mark.parametrize(
    "variable", ["WANDB_API_KEY=a", "WANDB_IDENTITY_TOKEN_FILE=a", "WANDB_MODE=offline", "WANDB_MODE=disabled"]
)
@pytest.mark.parametrize("in_ray", [False, True])
def test_an_account_or_none_needed_by_the_environment_here_or_in_ray(stock_config, monkeypatch, variable, in_ray):
    if in_ray:
        config = stock_config(f"++ray_kwargs.ray_init.runtime_env.env_vars.{variable}")
    else:
        monkeypatch.setenv(*variable.split("="))
        config = stock_config()
    assert missing_account(config) is None


@pytest.mark.parametrize(
    "text, found",
    [
        ("machine api.wandb.ai login user password a\n", True),
        ("machine other.host login user password a\n", False),
        ("no such syntax\n", True),  # whatever is in it
    ],
)
@pytest.mark.parametrize("name", [".netrc", "_netrc", "elsewhere"])
def test_what_wandb_login_has_kept_is_found(stock_config, monkeypatch, nobody, text, found, name):
    (nobody / name).write_text(text)
    (nobody / name).chmod(0o600)
    if name == "elsewhere":
        monkeypatch.setenv("NETRC", str(nobody / name))
    assert (missing_account(stock_config()) is None) == found


def test_the_key_is_that_of_the_users_own_server(stock_config, monkeypatch, nobody):
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.com:8080")
    (nobody / ".netrc").write_text("machine api.wandb.ai login user password a\n")
    (nobody / ".netrc").chmod(0o600)
    assert missing_account(stock_config()) is not None
    (nobody / ".netrc").write_text("machine wandb.example.com login user password a\n")
    assert missing_account(stock_config()) is None


def test_every_tracker_of_verls_has_its_package_here_and_no_other_has():
    from verl.utils.tracking import Tracking

    assert {*Tracking.supported_backend} - {"console", "file"} == PACKAGES.keys() - {"tracking"}
    text = Path(inspect.getfile(Tracking)).read_text()
    for package in PACKAGES.values():
        assert f"import {package}" in text or (package == "tensorboard" and "torch.utils.tensorboard" in text)


@pytest.mark.parametrize(
    ("logger", "reason"),
    [
        ("[console,wandbb]", "wandbb is not a tracker of verl; choose among wandb, mlflow,"),
        ("tensorbord", "tensorbord is not a tracker of verl"),
        (
            "[console,swanlab]",
            "swanlab needs the package swanlab, which is not installed; install it, or leave swanlab",
        ),
    ],
)
def test_a_tracker_that_is_not_there_is_refused_before_ray(stock_config, inputs, monkeypatch, logger, reason):
    monkeypatch.setitem(PACKAGES, "swanlab", "no_such_swanlab")
    reason = reason.replace("package swanlab", "package no_such_swanlab")
    with pytest.raises(ValueError, match=f"^trainer.logger: {reason}"):
        complete(stock_config(*inputs, SWITCH, f"trainer.logger={logger}"))


def test_a_tracker_that_the_workers_may_have_is_said(stock_config, monkeypatch, capsys):
    monkeypatch.setitem(PACKAGES, "swanlab", "no_such_swanlab")
    check_trackers(stock_config("trainer.logger=[swanlab]", "++ray_kwargs.ray_init.runtime_env.pip=[swanlab]"))
    assert "swanlab needs the package no_such_swanlab" in capsys.readouterr().out
    check_trackers(stock_config("trainer.logger=[console,file,tensorboard,wandb,tracking]"))
    check_trackers(stock_config("trainer.logger=null"))
    assert not capsys.readouterr().out
