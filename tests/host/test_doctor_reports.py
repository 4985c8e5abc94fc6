"""What fresh processes report to ``fgrpo doctor``."""

import json
import subprocess
import sys

from fgrpo_plugin.host.doctor_reports import PREFIX


def report(name: str, **environment: str):
    import os

    code = f"from fgrpo_plugin.host import doctor_reports; doctor_reports.{name}()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=180, env=os.environ | environment
    )
    (line,) = (line for line in done.stdout.splitlines() if line.startswith(PREFIX))
    return json.loads(line.removeprefix(PREFIX))


def test_an_attached_plugin_is_registered_with_every_shim_applied():
    found = report("report_registration")
    assert found["registered"] is True and found["refused"] == {}
    shims = {"config_hook", "policy_loss_fields", "reference_policy", "trainer_mode"}
    assert found["applied"] == dict.fromkeys(shims, "applied")


def test_a_plugin_that_is_switched_off_is_not_registered():
    assert report("report_registration", VERL_USE_EXTERNAL_PLUGINS="none", VERL_PLATFORM="")["registered"] is False
