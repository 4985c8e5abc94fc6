"""The runs through verl that the experiment reports, against the lab's seeds and against its page."""

import json

import pytest
import through_verl as run


@pytest.mark.parametrize("lam", run.LAMBDAS)
def test_the_host_agrees_with_the_lab_within_its_seeds(lam):
    summary = json.loads(run.RESULTS.read_text())[f"{lam:g}"]
    assert summary["steps"] == 90 and summary["algorithm"] == "f_hal" and summary["divergence"] == "kl"
    for kind, name in (("proxy", "heldout_accuracy_after"), ("true", "true_reward_after")):
        assert run.agrees(summary[name], lam, kind), (kind, summary[name], run.lab_spread(lam, kind))


def test_agreement_can_fail():
    assert not run.agrees(0.9, 0.5, "true") and not run.agrees(0.5, 0.0, "proxy")


def test_the_page_holds_the_table_of_the_results():
    page = (run.HERE / "README.md").read_text()
    assert run.table(json.loads(run.RESULTS.read_text())) in page
