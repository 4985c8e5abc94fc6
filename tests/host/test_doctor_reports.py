"""What fresh processes report to ``fgrpo doctor``; tests/test_doctor.py starts them."""

import json

from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

from fgrpo_plugin.host.contract import APPLIED
from fgrpo_plugin.host.doctor_reports import PREFIX, report_registration, report_vllm


def reported(capsys):
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith(PREFIX))
    return json.loads(line.removeprefix(PREFIX))


def test_an_attached_plugin_is_registered_with_every_shim_applied(capsys):
    report_registration()
    found = reported(capsys)
    assert found["registered"] is True and found["refused"] == {}
    shims = {"config_hook", "policy_loss_fields", "reference_policy", "trainer_mode"}
    assert found["applied"] == APPLIED and APPLIED.items() >= dict.fromkeys(shims, "applied").items()


def test_without_our_loss_in_verls_registry_nothing_is_registered(capsys, monkeypatch):
    monkeypatch.delitem(POLICY_LOSS_REGISTRY, "f_grpo")
    report_registration()
    assert reported(capsys)["registered"] is False


def test_the_version_of_vllm_is_reported_and_the_shim_on_it(capsys):
    import vllm

    report_vllm()
    assert reported(capsys) == {"version": vllm.__version__, "weight_transfer": "applied", "refused": None}
