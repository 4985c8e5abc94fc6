"""The patch series applies to a pristine copy of verl, its tests pass there, and the shims are not needed."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from email import message_from_bytes, policy
from pathlib import Path

import pytest

from fgrpo_plugin.divergences import available_divergences
from fgrpo_plugin.pinned import VERL, VERL_MAIN_COMMIT
from patches import check, make_series

ROOT = Path(__file__).parents[1]
PINNED = f"v{VERL}"
SHIMS, LOSSES = check.SHIMS, 2  # patches of the one kind, then of the other
PAGES = {  # pages of verl's documentation, which no installed package holds, and who changes them
    "docs/extend_guide.rst": ["0003-config-hooks.patch", "0004-extend-trainer-mode.patch"],
    "docs/index.rst": ["0006-f-grpo.patch"],
}
SECOND_TRANSFER = "+                receiver=None if receiver_future is None else receiver_future.future(),"
"""In 0005: the pinned verl sends weights at two places, `main` at one."""
GIT = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgSign=false"]
MODULES = (
    "fsdp, megatron, veomni, sglang, vllm, rollout, trainer, ci, training_utils, recipe, hardware, deployment, ray, "
    "worker, single_controller, misc, perf, model, algo, env, tool, ckpt, doc, data, cfg, reward, fully_async, "
    "one_step_off"
)
SECTIONS = [
    "### What does this PR do?",
    "### Checklist Before Starting",
    "### Test",
    "### API and Usage Example",
    "### Design & Code Changes",
    "### Checklist Before Submitting",
]
"""verl's pull-request template, 2026-08-22."""


def _json(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def hosts(tmp_path_factory) -> tuple[Path, Path]:
    """The installed host with the shims' patches, and with the whole series."""
    folder = tmp_path_factory.mktemp("hosts")
    pristine = make_series.installed_verl(folder)
    patches = check.patches_of(PINNED)
    check.apply(patches[:SHIMS], pristine, folder / "shims")
    check.apply(patches, pristine, folder / "all")
    return folder / "shims", folder / "all"


@pytest.fixture(scope="module")
def ran(hosts) -> dict[str, Callable[[], subprocess.CompletedProcess[str]]]:
    """What runs in processes of their own, two at a time; most of it is the import of verl."""
    shims, everything = hosts
    with ThreadPoolExecutor(2) as pool:
        jobs: dict[str, Future] = {
            "brought tests": pool.submit(
                check.run_tests, check.tests_of(check.patches_of(PINNED)), everything, "--tb=short", "-rs"
            ),
            "numbers": pool.submit(check.run_ours, "tests.support.upstream_process", everything, plugin=False),
            "stock": pool.submit(check.run_ours, "tests.support.shims_process"),
            "patched": pool.submit(check.run_ours, "tests.support.shims_process", shims),
        }
        yield {name: job.result for name, job in jobs.items()}


def _message(patch: Path):
    return message_from_bytes(patch.read_bytes(), policy=policy.default)


def _title(patch: Path) -> str:
    return re.sub(r"^\[PATCH \d/\d\] ", "", " ".join(_message(patch)["Subject"].split()))


def _changes(patch: Path) -> dict[str, list[str]]:
    """File -> removed and added lines."""
    files = re.split(r"^diff --git a/\S+ b/", _message(patch).get_content(), flags=re.MULTILINE)[1:]
    result = {}
    for file in files:
        path, _, hunks = file.partition("\n")
        result[path] = [line for line in hunks.split("\n@@", 1)[1].splitlines() if re.match(r"[+-](?!- $)", line)]
    return result


def test_every_shim_has_its_patch_for_both_hosts():
    shims = [path for path in (ROOT / "fgrpo_plugin/host/shims").glob("*.py") if path.name != "__init__.py"]
    named = [re.findall(r"[\w-]+\.patch", shim.read_text().split('"""')[1]) for shim in shims]
    assert all(len(names) == 1 for names in named)
    for series in ("main", PINNED):
        names = [patch.name for patch in check.patches_of(series)]
        assert len(names) == SHIMS + LOSSES
        assert sorted(name for [name] in named) == names[:SHIMS]
    assert check.SERIES == ("main", PINNED)


def test_both_series_make_the_same_changes():
    """Pages of verl's documentation are not part of an installed package, and one line is needed twice there."""
    for ours, main in zip(check.patches_of(PINNED), check.patches_of("main"), strict=True):
        assert (ours.name, _title(ours)) == (main.name, _title(main))
        old, new = _changes(ours), _changes(main)
        for page, patches in PAGES.items():
            assert (new.pop(page, None) is not None) == (ours.name in patches)
        second = [lines.remove(SECOND_TRANSFER) for lines in old.values() if SECOND_TRANSFER in lines]
        assert len(second) == (ours.name == "0005-failed-weight-receiver.patch")
        assert old == new and all(old.values())


@pytest.mark.parametrize("patch", check.patches_of("main"), ids=lambda patch: patch.name)
def test_a_patch_is_what_verl_asks_of_a_pull_request(patch):
    message, title = _message(patch), _title(patch)
    modules, rest = re.fullmatch(r"\[([a-z_, ]+)\] (\w+: \S.*)", title).groups()
    assert set(modules.split(", ")) <= set(MODULES.split(", ")) and rest.startswith(("feat: ", "fix: "))
    assert f"Signed-off-by: {' '.join(message['From'].split())}" in message.get_content()
    brought = check.tests_of([patch])
    assert brought and all(path.endswith("_on_cpu.py") for path in brought)

    text = (ROOT / "patches/pull_requests" / patch.name).with_suffix(".md").read_text()
    assert text.startswith(f"# {title}\n")
    assert re.findall(r"^###.*$", text, flags=re.MULTILINE) == SECTIONS
    assert all(path in text for path in brought)
    assert all(
        f"`{path}`" in text for path in _changes(patch) if path.startswith("verl/") and "_generated_" not in path
    )
    shims = [name for name in ("f-GRPO", "f_grpo", "f-HAL", "f_hal", "fgrpo") if name in message.get_content()]
    assert bool(shims) == (patch.name >= "0006"), "a patch of a shim is general"
    # verl's AGENTS.md: the commands, their results, and what is said of requests with the same aim.
    assert re.search(rf"`python -m pytest [^`]+`: \d+ passed on `main` at {VERL_MAIN_COMMIT[:9]}\.", text)
    assert "Search for similar PRs: [" in text and "AI assistance" in text


def test_the_patches_and_their_texts_call_verl_verl():
    found = [path for path in (ROOT / "patches").rglob("*") if path.suffix in (".md", ".patch", ".diff")]
    assert len(found) > 20
    assert not [path.name for path in found if re.search(r"\bhosts?\b(?!/)", path.read_text())]


def test_the_tests_that_the_series_brings_pass(ran):
    done = ran["brought tests"]()
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    passed = re.search(r"^(\d+) passed in ", done.stdout, flags=re.MULTILINE)
    assert passed and int(passed[1]) > 100 and "SKIP" not in done.stdout


def test_with_the_patches_the_shims_switch_themselves_off_and_the_loss_is_identical(ran, hosts):
    stock, ours = _json(ran["stock"]()), _json(ran["patched"]())
    assert stock["host"] != ours["host"] and str(hosts[0]) in ours["host"]
    assert stock["refused"] == ours["refused"] == {}
    assert set(stock["applied"].values()) == {"applied"} and len(stock["applied"]) == SHIMS
    assert set(ours["applied"].values()) == {"not needed"} and ours["applied"].keys() == stock["applied"].keys()
    assert ours["hooks"] == ["fgrpo_plugin.host.shims.config_hook:begin"]
    assert ours["trainer"] == stock["trainer"] == "FDivergencePPOTrainerSync"
    assert ours["loss"] == stock["loss"] and ours["gradient"] == stock["gradient"]
    # The shim reads an attribute of the loss, the patched verl its signature.
    assert ours["fields"] == stock["fields"] and all(ours["fields"].values())
    # What is refused has nothing to do with what verl can.
    assert stock["refusals"] == ours["refusals"]
    sentences = {
        "another entry point": "verl.trainer.main_ppo alone, not main_ppo.py",
        "no validation": "reached a trainer without validation",
        "another loss": "in place of our loss",
    }
    assert all(words in ours["refusals"][name] for name, words in sentences.items())


def test_the_patched_entry_point_completes_the_configuration(hosts, inputs, tmp_path):
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *inputs, "algorithm.adv_estimator=f_grpo"]
    refused = ["algorithm.use_kl_in_reward=true", "hydra.run.dir=.", "hydra.output_subdir=null"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, hosts[0])))}
    done = subprocess.run([*command, *refused], capture_output=True, text=True, timeout=300, env=env, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("fgrpo-plugin: algorithm.use_kl_in_reward=true contradicts")


def test_the_losses_for_verl_are_this_packages_for_every_divergence(ran, hosts):
    """Rows inside and outside the finite ranges and without a token, every link and level; sums in another order."""
    found = _json(ran["numbers"]())
    assert str(hosts[1]) in found["host"]
    built_in = {name for name in available_divergences() if not name.startswith("test")}
    assert set(found["names"]) == set(found["losses"]) and set(found["losses"]) <= built_in
    for name, differences in found["losses"].items():
        for quantity, difference in differences.items():
            assert difference < check.GAP, (name, quantity)
    assert all(difference < check.GAP for difference in found["adv"].values()) and len(found["adv"]) == 6


def test_the_documented_command_patches_an_installed_verl_inside_another_repository(hosts, tmp_path):
    """A virtual environment often lies in a checkout, where a plain `git apply` skips every file and says nothing."""
    [line] = re.findall(r"^.*git apply .*$", (ROOT / "patches/README.md").read_text(), flags=re.MULTILINE)
    command = line.replace("/path/to/patches", str(ROOT / "patches"))
    packages = tmp_path / "checkout" / "lib" / "site-packages"
    shutil.copytree(hosts[0].parent / "pristine" / "verl", packages / "verl")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path / "checkout", check=True)
    subprocess.run(command, shell=True, cwd=packages, check=True)
    # Other tests import that host, which leaves compiled files in it.
    compare = ["diff", "-r", "--exclude=__pycache__", packages / "verl", hosts[0] / "verl"]
    assert subprocess.run(compare, capture_output=True, text=True).stdout == ""
    assert [path.name for path in packages.iterdir()] == ["verl"]


STATES = {
    "applied": dict.fromkeys("abcde", "not needed"),
    "refused": {},
    "loss": 1.0,
    "gradient": [2.0],
    "fields": {"f_grpo": ["x"]},
}
NUMBERS = {"losses": {"kl": {"f_grpo": 1e-7}}}


@pytest.mark.parametrize(
    "patched, numbers, held",
    [
        ({}, NUMBERS, True),
        ({"applied": {**STATES["applied"], "b": "applied"}}, NUMBERS, False),
        ({"applied": {}, "refused": {"b": "not known"}}, NUMBERS, False),
        ({"loss": 1.5}, NUMBERS, False),
        ({"gradient": [2.5]}, NUMBERS, False),
        ({"fields": {}}, NUMBERS, False),
        ({}, {"losses": {"kl": {"f_grpo": 1e-7}, "gan": {"f_hal": 0.04}}}, False),
        ({}, {"losses": {"kl": {"f_grpo": float("inf")}}}, False),
        ({}, None, None),
    ],
)
def test_check_fails_where_a_shim_is_needed_or_a_loss_differs(patched, numbers, held, tmp_path, monkeypatch, capsys):
    def run_ours(module, host=None, plugin=True):
        answer = numbers if not plugin else STATES | (patched if host else {})
        said = json.dumps(answer) if answer else ""
        return subprocess.CompletedProcess([module], int(not answer), said, "Traceback\nSomeError: no\n")

    monkeypatch.setattr(check, "run_ours", run_ours)
    monkeypatch.setattr(check, "apply", lambda *_: "c0ffee")
    monkeypatch.setattr(check, "run_tests", lambda *_: subprocess.CompletedProcess([], 0, "1 passed\n", ""))
    with pytest.raises(SystemExit) as ended:
        check.main(tmp_path, series="main", rev="HEAD", shims=True)
    if held is None:
        assert str(ended.value).startswith("patches/check.py: tests.support.upstream_process failed (SomeError: no);")
    else:
        assert ended.value.code == int(not held)
    assert ("b refused: not known" in capsys.readouterr().out) == ("refused" in patched)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--series", "v0.1"], f"--series v0.1 is not known; choose one of main, {PINNED}."),
        (["--rev", "no-such-commit"], "name a git checkout of verl and a commit"),
        (["--series", PINNED], f"{PINNED}/0001-policy-loss-batch-fields.patch does not apply to this commit"),
    ],
)
def test_check_says_what_is_wrong_in_one_sentence(arguments, sentence, tmp_path):
    subprocess.run([*GIT, "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run([*GIT, "commit", "-q", "--allow-empty", "-m", "not verl"], cwd=tmp_path, check=True)
    command = [sys.executable, check.__file__, "--repo", str(tmp_path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"patches/check.py: {sentence}") and len(done.stderr.strip().splitlines()) == 1
