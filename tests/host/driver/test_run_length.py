"""A run that ends before its schedules do says so at its start."""

import pytest

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.driver.run_length import unreached

LINEAR = {"schedule": "linear", "start": 0.8, "end": 0.2}


def said(steps_per_epoch, epochs, total, lam=0.5):
    return " ".join(unreached(steps_per_epoch, epochs, total, FDivergenceConfig(lam=lam)))


@pytest.mark.parametrize("lam", [0.0, 0.5, LINEAR, {"schedule": "step", "values": [[1, 0.8], [40, 0.2]]}])
def test_a_run_that_reaches_its_end_says_nothing(lam):
    assert said(10, 4, 40, lam) == said(10, 5, 40, lam) == ""


def test_epochs_that_end_before_the_steps_are_said():
    found = said(10, 3, 45)
    assert "ends after 30 steps (trainer.total_epochs=3 x 10), before trainer.total_training_steps=45" in found
    assert "set trainer.total_epochs=5, or trainer.total_training_steps=30" in found
    assert "lambda" not in found


def test_lambda_that_does_not_reach_its_end_is_said():
    # Step 30 of 45: 0.8 - 0.6 * 29 / 44.
    assert f"lambda ends at {0.8 - 0.6 * 29 / 44:.4g}: its schedule goes on to step 45, and the run to step 30" in said(
        10, 3, 45, LINEAR
    )
    assert "lambda ends at 0.5: its schedule goes on to step 81, and the run to step 41" in said(
        41, 1, 41, LINEAR | {"steps": 81}
    )
    values = {"schedule": "step", "values": [[1, 0.8], [20, 0.5], [50, 0.2]]}
    assert "lambda ends at 0.5: its schedule goes on to step 50, and the run to step 40" in said(10, 4, 40, values)


def test_data_without_a_whole_step_are_said_elsewhere():
    assert said(0, 5, 50) == ""
    # Both ends count: what is planned, and what the epochs give.
    assert "the run to step 20" in said(10, 9, 20, {"schedule": "step", "values": [[1, 0.8], [40, 0.2]]})
