"""A run's folder is one run's at a time, seen from another process."""

import os
import subprocess
import sys

import pytest

from fgrpo_plugin.host.driver.run_folder import LOCK, hold

OTHER = """
import sys, time
from pathlib import Path
from fgrpo_plugin.host.driver.run_folder import hold
print(hold(Path(sys.argv[1])) is not None, flush=True)
time.sleep(120)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder `run`."""
    command = [sys.executable, "-c", OTHER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "True\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_and_told_which_one_is_there(other, tmp_path):
    with pytest.raises(ValueError, match="another run writes its checkpoints there") as error:
        hold(tmp_path / "run", patience=0.1)
    assert f"trainer.default_local_dir={tmp_path / 'run'}: " in str(error.value)
    assert f"(process {other.pid} on " in str(error.value)


def test_one_that_was_killed_holds_nothing_and_is_waited_for(other, tmp_path):
    later = subprocess.Popen(["sh", "-c", f"sleep 2; kill -9 {other.pid}"])
    held = hold(tmp_path / "run", patience=30.0)
    later.wait()
    assert held is not None
    assert (tmp_path / "run" / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    os.close(held)


def test_another_folder_is_free(other, tmp_path):
    held = hold(tmp_path / "run2", patience=0.1)
    assert held is not None
    os.close(held)


def test_where_nothing_can_be_written_or_locked_there_is_no_lock_and_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    assert hold(tmp_path / "file") is None

    def no_locks(*given):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fgrpo_plugin.host.driver.run_folder.fcntl.lockf", no_locks)
    assert hold(tmp_path / "run") is None
