"""``fgrpo doctor``: ready here, and not where the plugin is switched off."""

import pytest
from typer.testing import CliRunner

from fgrpo_plugin import doctor
from fgrpo_plugin.cli import app
from fgrpo_plugin.pinned import VERL, VERL_ALSO


def test_doctor_says_that_this_environment_is_ready():
    result = CliRunner().invoke(app, ["doctor", "--no-ray"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert [line.split(":")[0].removeprefix("ok").strip() for line in lines[:-1]] == [
        "python",
        "verl",
        "entry point",
        "plugin in a fresh process",
        "torch",
        "vLLM",
        "Megatron",
    ]
    assert "megatron-core 0.16.1, mbridge 0.15.1, megatron-bridge not installed" in result.output.replace("\n", " ")
    for shim in ("config_hook", "policy_loss_fields", "reference_policy", "trainer_mode", "weight_transfer"):
        assert f"{shim} applied" in result.output.replace("\n", " ")
    assert lines[-1] == "ready"


def test_doctor_names_the_remedy_where_the_plugin_is_switched_off(monkeypatch):
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", "none")
    monkeypatch.setattr(doctor, "_vllm", lambda: "not asked here")
    result = CliRunner().invoke(app, ["doctor", "--no-ray"])
    assert result.exit_code == 1
    output = " ".join(result.output.split())
    assert "FAIL entry point: VERL_USE_EXTERNAL_PLUGINS=none switches the plugin off; add fgrpo to it" in output
    assert output.endswith("not ready: see the lines marked FAIL")


def test_doctor_fails_where_verls_transfer_of_weights_is_another(monkeypatch):
    found = {"version": "9.9", "weight_transfer": None, "refused": "BucketedWeightSender is not known."}
    monkeypatch.setattr(doctor, "_probe", lambda report: found)
    with pytest.raises(doctor.NotReady, match="BucketedWeightSender is not known"):
        doctor._vllm()


@pytest.mark.parametrize("listed", ["fgrpo", "other, fgrpo", " fgrpo ,other", "AUTO "])
def test_a_list_of_plugins_may_have_spaces(listed, monkeypatch):
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", listed)
    assert doctor._entry_point() == "fgrpo_plugin.host.register"


@pytest.mark.parametrize("listed", ["other", "other, auto", "fgrpo2", ""])
def test_a_list_without_the_plugin_is_said(listed, monkeypatch):
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", listed)
    with pytest.raises(doctor.NotReady, match="switches the plugin off; add fgrpo to it"):
        doctor._entry_point()


def test_a_slow_machine_is_not_taken_for_a_missing_engine(monkeypatch):
    monkeypatch.setattr(doctor, "PATIENCE_SECONDS", 0.01)
    with pytest.raises(
        doctor.NoAnswer, match=r"^no answer within 0\.01 seconds: this machine or its disk is busy; try"
    ):
        doctor._vllm()


def test_another_engine_alone_is_said(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: name if name == "sglang" else None)
    monkeypatch.setattr(doctor, "version", lambda name: {"sglang": "0.5.12"}[name])
    assert doctor._vllm().startswith("not installed; SGLang 0.5.12 is, which was not run with this plugin")


def test_without_an_entry_point_the_variable_has_to_name_the_plugin(monkeypatch):
    monkeypatch.setattr(doctor, "entry_points", lambda group: [])
    monkeypatch.setenv(doctor.EXTERNAL, "mine")
    with pytest.raises(doctor.NotReady, match="PYTHONPATH is not enough"):
        doctor._entry_point()
    monkeypatch.setenv(doctor.EXTERNAL, f"mine,{doctor.REGISTER}")
    assert doctor._entry_point().startswith(f"none; {doctor.EXTERNAL} names {doctor.REGISTER}")


def test_doctor_shows_what_an_unknown_verl_needs(monkeypatch):
    monkeypatch.setattr(doctor, "version", lambda name: "9.9.9")
    try:
        doctor._verl()
    except doctor.NotReady as problem:
        assert str(problem) == f"9.9.9 is not known to this plugin; pip install verl=={VERL}"
    else:
        raise AssertionError("an unknown verl passed")


def test_the_plugin_reaches_a_ray_worker():
    assert doctor._ray() == "f_grpo registered there too"


def test_a_release_that_is_taken_too_is_told_of_and_any_other_is_not_known(monkeypatch):
    installed = {"verl": VERL_ALSO[0]}
    monkeypatch.setattr(doctor, "version", installed.__getitem__)
    assert doctor._verl() == f"{VERL_ALSO[0]}, which has its limits (docs/versions.md); this was written for {VERL}"
    installed["verl"] = VERL
    assert doctor._verl() == VERL
    installed["verl"] = "0.8.0"
    with pytest.raises(doctor.NotReady, match=rf"0\.8\.0 is not known to this plugin; pip install verl=={VERL}"):
        doctor._verl()
