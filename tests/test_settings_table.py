"""A run, its plan and verl's own validation agree on published settings, or the table says why they do not.

Each row of tests/settings_table.yaml is taken from a public script or report, which it names.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from fgrpo_plugin.host.settings.compose import compose
from fgrpo_plugin.host.settings.switch import check_and_fill_in
from fgrpo_plugin.host.settings.trainer_mode import check_trainer_mode
from fgrpo_plugin.host.settings.verls_own import check_by_verl

ROWS = yaml.safe_load(Path(__file__).with_name("settings_table.yaml").read_text())
NAMES = [row["name"] for row in ROWS]


def verdict(check: Callable[[], object]) -> str | None:
    """Why it is refused, or None."""
    try:
        check()
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
        return str(error)
    return None


def run(overrides: list[str]) -> None:
    """What a run checks of its configuration before Ray starts; files are checked elsewhere."""
    config = compose(["algorithm.adv_estimator=f_grpo", *overrides])
    check_trainer_mode(config)
    check_and_fill_in(config)


def plan(overrides: list[str]) -> None:
    """What ``fgrpo plan`` does with it, but for its verdict on memory."""
    from fgrpo_plugin.plan.compose import check_run, compose_run, read_run
    from fgrpo_plugin.plan.gpus import find_gpu
    from fgrpo_plugin.plan.older_options import rewrite

    given = rewrite(["algorithm.adv_estimator=f_grpo", *overrides])
    _, config = compose_run([], {}, given, lambda line: None)
    check_run(config)
    read_run(config, find_gpu("H100"), {})


def verl(overrides: list[str]) -> None:
    """verl's validation of the same settings, with the reference policy that f-GRPO needs."""
    check_by_verl(compose(["algorithm.adv_estimator=grpo", *overrides]))


PARTIES = {"run": run, "plan": plan, "verl": verl}


def test_the_table_is_large_and_each_row_is_its_own():
    assert len(ROWS) >= 60 and len(set(NAMES)) == len(ROWS)
    assert sum(row["refused"] is not None for row in ROWS) >= 15
    assert len({tuple(sorted(row["overrides"].split())) for row in ROWS}) == len(ROWS)
    assert all(row["source"] for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_run_plan_and_verl_agree(row):
    """`refused`: words of the run's reason, or null. Under `unless` each party that says otherwise, and why it does."""
    found = {name: verdict(lambda check=check: check(row["overrides"].split())) for name, check in PARTIES.items()}
    if row["refused"] is None:
        assert found["run"] is None
    else:
        assert row["refused"] in (found["run"] or "accepted"), found
    differing = {name for name in ("plan", "verl") if (found[name] is None) != (found["run"] is None)}
    assert differing == set(row.get("unless", {})), found
    assert all(row["unless"][name] for name in differing)
