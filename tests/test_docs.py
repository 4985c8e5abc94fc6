"""The pages that are made from the code say what the code says now, and have their pictures."""

import importlib.util
import json
import math
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"
WRITTEN = ("*.md", "docs/*.md", "recipes/*/*.md", "experiments/*/*.md", "patches/**/*.md")
PAGES = [page for pattern in WRITTEN for page in DOCS.parent.glob(pattern)]
NUMBER = re.compile(r"\d+\.?\d*")


@pytest.mark.parametrize("name", ["commands", "concepts", "divergences", "lambda", "metrics", "theory"])
def test_made_page_is_current(name, tmp_path):
    module = maker(name)
    text, made = (DOCS / f"{name}.md").read_text(), module.page()
    assert NUMBER.sub("#", made) == NUMBER.sub("#", text), f"run `make docs`: docs/{name}.md is out of date"
    if name in ("commands", "metrics"):  # of which no number is measured
        assert made == text
    # Another processor's rounding may move a last digit, or a start that falls by hardly more than 1e-12.
    for now, then in zip(NUMBER.findall(made), NUMBER.findall(text), strict=True):
        assert float(now) == pytest.approx(float(then), rel=0.02, abs=0.002 if "." in then else 1)
    assert "!" not in re.sub(r"!\[", "[", text)  # the sign with which a table marks a statement that does not hold
    module.draw(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(re.findall(r"\(figures/([^)]+)\)", text))


def maker(name: str):
    """A script of docs/make as a module."""
    spec = importlib.util.spec_from_file_location(f"make_{name}", DOCS / "make" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_measured_tables_are_those_of_the_results():
    measured = maker("measured")
    for name in measured.PAGES:
        text = (DOCS.parent / name).read_text()
        assert measured.BLOCK.search(text) and measured.filled(text) == text, f"run `make docs`: {name} is out of date"
        # What is changed by hand is set right.
        assert measured.filled(measured.BLOCK.sub(lambda block: block[1] + "| by hand |" + block[3], text)) == text


def test_the_tables_of_engines_are_made_of_what_their_tests_measured():
    engines = maker("engines")
    for file, text in engines.tables(json.loads(engines.FIGURES.read_text())).items():
        assert (engines.HERE / file).read_text() == text, "run `make docs`"


def test_the_readmes_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", (DOCS.parent / "README.md").read_text(), flags=re.DOTALL)
    names: dict = {}
    exec(example, names)
    gradient = names["log_prob"].grad
    assert gradient[1].sum() < 0 < gradient[0].sum()  # the good row goes up, the bad one down


def test_the_tables_of_settings_are_made_of_their_fields():
    from fgrpo_plugin.config import FDivergenceConfig
    from fgrpo_plugin.preference.config import PreferenceConfig

    settings = maker("settings")
    texts = [(DOCS.parent / name).read_text() for name in settings.PAGES]
    for name, text in zip(settings.PAGES, texts, strict=True):
        assert settings.filled(text) == text, f"run `make docs`: {name} is out of date"
        # What is changed by hand is set right.
        assert settings.filled(settings.BLOCK.sub(lambda block: block[1] + "| by hand |" + block[3], text)) == text
    found = {block[2]: block[0].splitlines() for text in texts for block in settings.BLOCK.finditer(text)}
    assert found.keys() == settings.TABLES.keys()
    for table, cls in (("settings", FDivergenceConfig), ("preference", PreferenceConfig)):
        named = {line.split("`")[1]: line for line in found[table] if line.startswith("| `")}
        assert list(named) == [field.name for field in fields(cls) if field.name != "old_log_prob"]
        assert all(len(re.split(r"(?<!\\)\|", line)) == 5 and not line.endswith("|  |") for line in named.values())
    rows = "\n".join(found["settings"])
    assert "| `beta` | 0.1 | Scale of log(pi/pi_ref)" in rows and "| `lam` | 0.5 for `f_hal` | " in rows
    assert "0.0 (`stable`, `paper`), 1.0 (`released`) |" in rows and "`jeffreys`, `alpha` |" in rows
    assert "| `lam` | 0.5 for `f_hal` | " in found["both halves"][3] and len(found["both halves"]) == 6


def test_the_table_of_presets_is_that_of_the_code():
    from fgrpo_plugin.config import PRESETS

    table = re.search(r"^\| preset \|(.*?)\n\n", (DOCS / "assumptions.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    names, _, *rows = (
        [cell.strip(" `") for cell in line.strip("|").split("|")] for line in table[0].strip().splitlines()
    )
    documented = {row[0]: dict(zip(names[1:-1], row[1:-1], strict=True)) for row in rows}
    assert documented == {
        preset: {name: f"{value:g}" if name == "gamma" else value for name, value in values.items()}
        for preset, values in PRESETS.items()
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS.parent)))
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


OURS = re.compile(r"`((?:fgrpo_plugin|benchmarks|experiments|recipes|tests|docs/make)/[\w./]+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS.parent)))
def test_paths_that_are_named_exist(page):
    if "pull_requests" in page.parts:  # they speak of verl's tree
        return
    for name in OURS.findall(page.read_text()):
        assert (DOCS.parent / name).exists(), name


def test_a_page_names_paths():
    assert len(OURS.findall((DOCS / "house.md").read_text())) > 10


def test_the_formats_of_preference_data_are_those_of_the_readers():
    from fgrpo_plugin.preference import readers

    page = (DOCS / "preference_data.md").read_text()
    table = [line for line in readers.__doc__.splitlines() if line.startswith("|")]
    assert "\n".join(["<!-- formats -->", *table, "<!-- /formats -->"]) in page
    assert {line.split(" ")[1] for line in table[2:]} == {format.name for format in readers.FORMATS}


MENTIONED = re.compile(
    r"(?<![\w./-])((?:fgrpo_plugin|benchmarks|experiments|recipes|tests|docs|requirements|patches)/[\w./]+\.\w+)\b"
)
SOURCES = [
    path
    for folder in ("fgrpo_plugin", "benchmarks", "docs", "tests", "experiments", "recipes")
    for pattern in ("*.py", "*.yaml", "*.sh")
    for path in (DOCS.parent / folder).rglob(pattern)
]


def test_paths_that_sources_name_exist():
    missing = {
        f"{path.relative_to(DOCS.parent)}: {name}"
        for path in SOURCES
        for name in MENTIONED.findall(path.read_text())
        # These speak of verl's tree and of the built site.
        if path.name not in ("test_patches.py", "settings_table.yaml", "test_site.py")
        and not (DOCS.parent / name).exists()
    }
    assert not missing, sorted(missing)


def blocks(page: str, name: str) -> list[str]:
    """The Python between two marks of a page, which its test runs."""
    (part,) = re.findall(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", (DOCS / page).read_text(), flags=re.DOTALL)
    return re.findall(r"```python\n(.*?)```", part, flags=re.DOTALL)


def test_the_example_on_the_page_of_samples_reads_what_verl_writes(tmp_path, monkeypatch, capsys):
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    monkeypatch.chdir(tmp_path)
    keys = [f"{prompt}_{number}_0" for prompt in ("1f-0a", "2e-0b") for number in (0, 1)] + ["pad0c_0_0"]
    outputs, scores = ["short", "a longer one", "the longest of them", "x", ""], [1.0, 1.0, 1.0, 0.0, 0.0]
    PPOTrainer._write_generations(
        ["1+1="] * 5, outputs, ["2"] * 5, scores, {"uid": keys}, "samples/train", global_steps=1
    )
    fields = set(json.loads(Path("samples/train/1.jsonl").read_text().splitlines()[0]))
    assert fields == {"input", "output", "gts", "score", "step", "uid"}
    (example,) = blocks("samples.md", "read a dump")
    names: dict = {}
    exec(example, names)
    assert len(names["rows"]) == 4 and sorted(names["groups"].groups) == ["1f-0a", "2e-0b"]
    printed = capsys.readouterr().out
    assert "groups with equal rewards: 0.5" in printed and "the longest of them" in printed


def test_verl_s_viewer_wants_what_the_page_of_samples_says():
    source = Path(importlib.util.find_spec("scripts.rollout_viewer").origin).read_text()
    assert 'Version("0.52.1")' in source and "import aiofiles" in source


def test_the_reward_and_the_prompts_of_their_page_work(tmp_path, monkeypatch, stock_config, inputs):
    """By verl's own reward manager, and by the checks before Ray."""
    import asyncio

    from verl import DataProto
    from verl.trainer.ppo.reward import load_reward_manager

    from fgrpo_plugin.host.settings.prompts import check_prompts
    from fgrpo_plugin.quickstart.model import build_tokenizer

    monkeypatch.chdir(tmp_path)
    (reward,), (prompts,) = blocks("own_data.md", "reward"), blocks("own_data.md", "prompts")
    Path("my_reward.py").write_text(reward)
    names: dict = {}
    exec(prompts, names)
    data = [f"data.{name}_files=train.parquet" for name in ("train", "val")]
    config = stock_config(
        *inputs[2:], *data, "data.train_batch_size=2", "reward.custom_reward_function.path=my_reward.py"
    )
    tokenizer = build_tokenizer()
    check_prompts(config, tokenizer)

    async def score(row: dict, response: str) -> dict:
        ids = torch.tensor([tokenizer.encode(response, add_special_tokens=False)])
        single = DataProto.from_dict(
            tensors={"prompts": torch.ones(1, 3, dtype=torch.long), "responses": ids, "attention_mask": ids * 0 + 1},
            non_tensors={name: np.array([row[name]], dtype=object) for name in row},
        )
        return await load_reward_manager(config, tokenizer).run_single(single)

    for row, response, expected in zip(
        names["rows"] * 2, ["2+2 is 4", "-2", "3", "none"], [1.0, 1.0, 0.1, 0.0], strict=True
    ):
        found = asyncio.run(score(row, response))
        assert found["reward_score"] == expected
        assert found["reward_extra_info"].keys() == {"score", "acc", "characters"}


def test_the_page_of_rewards_names_verl_s_reward_managers(stock_config):
    import verl.experimental.reward_loop.reward_manager  # noqa: F401
    from verl.experimental.reward_loop.reward_manager.registry import REWARD_MANAGER

    page = (DOCS / "own_data.md").read_text()
    assert all(f"`{name}`" in page for name in REWARD_MANAGER)
    reward = stock_config().reward
    assert (reward.num_workers, reward.reward_manager.name) == (8, "naive")
    assert reward.custom_reward_function.name == "compute_score"


def test_the_slurm_script_is_bash_and_starts_as_many_nodes_as_the_run_wants(tmp_path):
    (script,) = re.findall(r"<!-- slurm -->\n```bash\n(.*?)```", (DOCS / "clusters.md").read_text(), flags=re.DOTALL)
    file = tmp_path / "run.sbatch"
    file.write_text(script)
    subprocess.run(["bash", "-n", file], check=True)
    nodes, gpus = re.search(r"--nodes=(\d+)", script)[1], re.search(r"--gpus-per-node=(\d+)", script)[1]
    assert f"trainer.nnodes={nodes} trainer.n_gpus_per_node={gpus}" in script


def test_the_variable_of_the_page_of_clusters_registers_everything_without_the_entry_point():
    code = (
        "import verl; from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY as losses; "
        "assert {'f_grpo', 'f_hal'} <= losses.keys(); from hydra import compose, initialize_config_module; "
        "initialize_config_module('verl.trainer.config', version_base=None).__enter__(); "
        "assert compose('ppo_trainer', ['+fgrpo=math_7b']).algorithm.adv_estimator == 'f_grpo'"
    )
    (name,) = set(re.findall(r"VERL_USE_EXTERNAL_MODULES[=:] ?([\w.]+)", (DOCS / "clusters.md").read_text()))
    environment = os.environ | {"VERL_USE_EXTERNAL_PLUGINS": "none", "VERL_USE_EXTERNAL_MODULES": name}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def _documented_commands() -> list[tuple[str, list[str]]]:
    """Every `fgrpo ...` in a fenced block of a page."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if match := re.match(r"(?:srun )?fgrpo (.*)", line):
                    found.append((str(page.relative_to(DOCS.parent)), shlex.split(match[1], comments=True)))
    return found


def test_the_options_of_documented_commands_exist():
    from typer.main import get_command

    from fgrpo_plugin.cli import app
    from fgrpo_plugin.plan.older_options import ASSUMED, FIELDS

    older = {f"--{name}" for name in (*FIELDS, *ASSUMED)}  # of `fgrpo plan`, which rewrites them
    commands = _documented_commands()
    assert len(commands) >= 10
    for page, words in commands:
        command = get_command(app)
        of_plan = older if words[:1] == ["plan"] else set()
        while hasattr(command, "commands"):
            assert words and words[0] in command.commands, f"{page}: fgrpo {' '.join(words)}"
            command, words = command.commands[words[0]], words[1:]
        known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {"--help"}
        for word in words:
            if re.match(r"--?[a-z]", word):
                assert word.split("=")[0] in known | of_plan, f"{page}: {word}"


def test_the_metric_that_contributors_are_shown_is_the_one_that_is_logged():
    import yaml

    text = (DOCS.parent / "CONTRIBUTING.md").read_text()
    (shown,) = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, flags=re.DOTALL)[1])
    logged = yaml.safe_load((DOCS.parent / "fgrpo_plugin" / "host" / "metrics.yaml").read_text())
    assert shown in (logged if isinstance(logged, list) else [one for part in logged.values() for one in part])


def test_the_links_that_are_written_out_are_the_codes():
    import torch

    divergences = maker("divergences")
    r = torch.linspace(-4, 4, 81, dtype=torch.float64)
    known = {"exp": torch.exp, "tanh": torch.tanh, "softplus": torch.nn.functional.softplus, "log": math.log, "r": r}
    seen = set()
    for name, d in divergences.entries():
        seen.add((name, d.link_name))
        for text, function in zip(divergences.LINKS[name, d.link_name], (d.link, d.conjugate_of_link), strict=True):
            above, _, below = text.partition(" above r = -2, else ")
            value = eval(above.replace("^", "**"), known | {"a": d.alpha})
            value = torch.where(r > -2, value, float(below)) if below else value
            torch.testing.assert_close(function(r), value.expand_as(r))
    assert seen == divergences.LINKS.keys()
