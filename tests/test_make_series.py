"""The series for the pinned verl is what make_series makes of main/, byte for byte; main/ moves with verl's main."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fgrpo_plugin.pinned import VERL, VERL_MAIN_COMMIT
from patches import check, make_series

ROOT = Path(__file__).parents[1]
TEXT = "".join(f"line {number}\n" for number in range(1, 31))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    """A copy of the installed verl; its first commit is what the tests start from."""
    return make_series.installed_verl(tmp_path_factory.mktemp("installed"))


def again(pristine: Path, folder: Path) -> Path:
    check.apply([], pristine, folder, "HEAD")
    return folder


def test_the_pinned_series_is_made_from_that_of_main_byte_for_byte(pristine, tmp_path):
    made = make_series.for_installed(
        check.patches_of("main"), make_series.ONLY_PINNED, again(pristine, tmp_path / "verl")
    )
    assert made == {patch.name: patch.read_bytes() for patch in check.patches_of(f"v{VERL}")}


def test_without_what_only_the_pinned_verl_needs_it_is_another_series(pristine, tmp_path):
    (tmp_path / "none").mkdir()
    made = make_series.for_installed(
        check.patches_of("main")[:5], tmp_path / "none", again(pristine, tmp_path / "verl")
    )
    kept = {patch.name: patch.read_bytes() for patch in check.patches_of(f"v{VERL}")}
    assert [name for name in made if made[name] != kept[name]] != [] and list(made) == list(kept)[:5]
    line = b"+                receiver=None if receiver_future is None else receiver_future.future(),\n"
    assert line not in made["0005-failed-weight-receiver.patch"] and line in kept["0005-failed-weight-receiver.patch"]


def test_a_diff_of_no_patch_or_that_does_not_apply_is_refused(pristine, tmp_path):
    (tmp_path / "only").mkdir()
    diff = tmp_path / "only" / "0009-nothing.diff"
    diff.write_text("")
    verl = again(pristine, tmp_path / "verl")
    with pytest.raises(ValueError, match="no patch is called 0009-nothing: rename its diff in only/"):
        make_series.for_installed(check.patches_of("main")[:1], diff.parent, verl)
    diff.rename(diff.with_name("0001-policy-loss-batch-fields.diff"))
    with pytest.raises(ValueError, match=r"0001-policy-loss-batch-fields\.diff does not apply after its patch"):
        make_series.for_installed(check.patches_of("main")[:1], diff.parent, verl)


def test_a_patch_that_does_not_fit_the_installed_verl_is_named(pristine, tmp_path):
    lost = tmp_path / "0001-lost.patch"
    lost.write_text(
        check.patches_of("main")[0].read_text().replace("policy_loss_fn = get_policy_loss_fn", "other = get")
    )
    with pytest.raises(ValueError, match=rf"0001-lost\.patch of main/ does not apply to verl {VERL}"):
        make_series.for_installed([lost], make_series.ONLY_PINNED.parent, again(pristine, tmp_path / "verl"))


def test_another_installed_verl_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(make_series, "version", lambda name: "9.9.9")
    with pytest.raises(ValueError, match=f"install verl=={VERL}"):
        make_series.installed_verl(tmp_path)


@pytest.fixture
def upstream(tmp_path) -> Path:
    """A repository that stands for verl's, with a branch `mine` of two commits, and then a newer `main`."""
    repo = tmp_path / "upstream"
    repo.mkdir()
    check.git(repo, "init", "-q", "-b", "none")

    def commit(branch, text, message):
        check.git(repo, "checkout", "-q", *branch)
        (repo / "file").write_text(text)
        check.git(repo, "add", "file")
        check.git(repo, "commit", "-q", "--date=2026-11-21T10:00:00+0000", "-m", message)

    commit(["--orphan", "main"], TEXT, "old")
    commit(["-b", "mine"], TEXT.replace("line 10\n", "line 10\nours\n"), "[trainer] feat: first")
    commit(["mine"], TEXT.replace("line 10\n", "line 10\nours\n").replace("line 29\n", ""), "[trainer] feat: second")
    commit(["main"], "new\n" * 40 + TEXT.replace("line 8\n", "line eight\n"), "[trainer] newer")
    return repo


def series(folder: Path, texts: dict[str, bytes]) -> list[Path]:
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_bytes(text)
    return sorted(folder.iterdir())


def test_the_series_of_main_comes_from_a_branch_and_moves_to_a_newer_commit(upstream, tmp_path, monkeypatch):
    names = [Path("0001-first.patch"), Path("0002-second.patch")]
    old = check.git(upstream, "rev-parse", "main~1")
    monkeypatch.setattr(make_series, "VERL_MAIN_COMMIT", old)
    texts = make_series.from_commits(names, upstream, "mine", tmp_path / "a")
    assert list(texts) == [path.name for path in names]
    first, second = (text.decode() for text in texts.values())
    assert f"base-commit: {old}\n" in first and "base-commit" not in second
    assert "Subject: [PATCH 1/2] [trainer] feat: first\n" in first and "\n+ours\n" in first and "\n-line 29\n" in second
    assert "Date: Sat, 21 Nov 2026 10:00:00 +0000\n" in first and first.startswith("From " + "0" * 40)

    patches = series(tmp_path / "main", texts)
    with pytest.raises(ValueError, match=r"there are 2 commits since .* for 1 patches"):
        make_series.from_commits(names[:1], upstream, "mine", tmp_path / "b")
    runs = [make_series.on_main(patches, upstream, "main", tmp_path / clone) for clone in "cd"]
    assert runs[0] == runs[1]
    commit, moved = runs[0]
    assert commit == check.git(upstream, "rev-parse", "main")
    assert f"base-commit: {commit}\n".encode() in moved[patches[0].name]
    assert b"@@ -48," in moved[patches[0].name] and b" line eight\n" in moved[patches[0].name]
    # On what it was made for, a series is the same bytes.
    assert make_series.on_main(patches, upstream, old, tmp_path / "e") == (old, texts)
    check.apply(series(tmp_path / "moved", moved), upstream, tmp_path / "f", "main")
    assert (tmp_path / "f" / "file").read_text().count("ours\n") == 1


def test_the_users_settings_of_git_do_not_change_a_patch(upstream, tmp_path, monkeypatch):
    monkeypatch.setattr(make_series, "VERL_MAIN_COMMIT", check.git(upstream, "rev-parse", "main~1"))
    names = [Path("1.patch"), Path("2.patch")]
    plain = make_series.from_commits(names, upstream, "mine", tmp_path / "a")
    settings = tmp_path / "gitconfig"
    settings.write_text("[diff]\n noprefix = true\n context = 9\n[format]\n signature = me\n subjectPrefix = MINE\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    assert make_series.from_commits(names, upstream, "mine", tmp_path / "b") == plain


def test_the_commit_that_main_is_for_is_the_pinned_one():
    first = check.patches_of("main")[0].read_text()
    assert f"\nbase-commit: {VERL_MAIN_COMMIT}\n" in first


def test_the_command_writes_the_series_and_says_what_has_changed(tmp_path):
    """On a copy, in which the pinned series is out of date."""
    shutil.copytree(ROOT / "patches", tmp_path / "patches", ignore=shutil.ignore_patterns("__pycache__"))
    name = check.patches_of(f"v{VERL}")[2].name
    (tmp_path / "patches" / f"v{VERL}" / name).write_text("old\n")
    command = [sys.executable, "-m", "patches.make_series"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"v{VERL}/: 7 patches, changed: {name}\n"
    kept = ROOT / "patches" / f"v{VERL}" / name
    assert (tmp_path / "patches" / f"v{VERL}" / name).read_bytes() == kept.read_bytes()

    wrong = subprocess.run(
        [*command, "--repo", str(ROOT), "--rev", "none"], cwd=tmp_path, capture_output=True, text=True
    )
    assert wrong.returncode == 1 and len(wrong.stderr.strip().splitlines()) == 1
    assert wrong.stderr.startswith("patches/make_series.py: name a git checkout and a commit (git rev-parse")


def test_a_patch_that_is_renamed_leaves_no_old_file_and_both_names_are_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check, "PATCHES", tmp_path)
    make_series._write("main", {"0001-a.patch": b"a", "0002-b.patch": b"b"})
    make_series._write("main", {"0001-a.patch": b"a", "0002-c.patch": b"b"})
    assert sorted(path.name for path in (tmp_path / "main").iterdir()) == ["0001-a.patch", "0002-c.patch"]
    first, second = capsys.readouterr().out.splitlines()
    assert first == "main/: 2 patches, changed: 0001-a.patch, 0002-b.patch"
    assert second == "main/: 2 patches, changed: 0002-b.patch, 0002-c.patch"


@pytest.mark.parametrize("words", [{"edited": True}, {"rev": "mine"}])
def test_what_is_said_of_a_checkout_without_one_is_refused(words):
    with pytest.raises(SystemExit, match="name it with --repo"):
        make_series.main(**{"repo": None, "rev": "HEAD", "edited": False} | words)
