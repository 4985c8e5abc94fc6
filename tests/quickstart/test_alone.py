"""One quick start on a machine, and nothing left of it after an interrupt."""

import os
import signal
import time
import uuid
from pathlib import Path

import pytest

from fgrpo_plugin.processes import end_run, marked_processes
from fgrpo_plugin.quickstart import alone
from fgrpo_plugin.quickstart.alone import cleaned_up, only_run
from fgrpo_plugin.quickstart.options import QuickstartError, QuickstartOptions
from fgrpo_plugin.quickstart.run import run_quickstart
from tests.support.marked_tree import start_tree


def test_a_second_quick_start_is_refused_before_the_first_has_started_its_host(tmp_path, monkeypatch):
    monkeypatch.setattr(alone, "other_runs", list)  # other tests' may run beside this
    with only_run() as first:
        assert first
        with pytest.raises(QuickstartError, match="another quick start is running"):
            run_quickstart(QuickstartOptions(run_dir=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    with only_run() as again:
        assert again


def test_a_second_quick_start_is_refused_while_one_runs(tmp_path):
    run_id = uuid.uuid4().hex
    process = start_tree(run_id)
    try:
        with pytest.raises(QuickstartError, match="another quick start is running"):
            run_quickstart(QuickstartOptions(run_dir=tmp_path / "run"))
    finally:
        end_run(run_id, grace_seconds=0.2)
        process.wait()
    assert not (tmp_path / "run").exists()


def test_cleaning_up_happens_after_an_interrupt_too_and_what_another_uses_for_long_stays(tmp_path):
    run_id = uuid.uuid4().hex
    folder = tmp_path / "ray"
    folder.mkdir()
    names = [Path("/dev/shm") / f"{kind}_{uuid.uuid4().hex}" for kind in ("psm", "verl_weights", "psm", "verl_weights")]
    try:
        with pytest.raises(KeyboardInterrupt), cleaned_up(run_id, folder):
            for name in names:
                name.write_bytes(b"x")
            os.utime(names[3], (time.time() - 1000,) * 2)
            process = start_tree(run_id, names[0])
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        process.wait()
        assert marked_processes(run_id) == []
        assert not folder.exists() and [name.exists() for name in names] == [False, False, True, True]
    finally:
        for name in names:
            name.unlink(missing_ok=True)
