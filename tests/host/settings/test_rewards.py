"""Rows and reward functions that verl's reward managers would fail on are refused before anything starts."""

import os

import pytest

from fgrpo_plugin.host.settings.rewards import (
    check_reward_function,
    check_reward_manager,
    default_reward_problem,
    earns_full_reward,
    reads_rows,
    reward_problem,
)

ROW = {"data_source": "openai/gsm8k", "reward_model": {"style": "rule", "ground_truth": "12"}}
HEAD_TWO = "def compute_score(solution_str, ground_truth): return 0"
HEAD = "def compute_score(data_source, solution_str, ground_truth, extra_info=None"


def test_verls_own_reward_is_asked():
    assert default_reward_problem("openai/gsm8k") is None and "no reward" in default_reward_problem("mine")
    assert earns_full_reward("openai/gsm8k", "#### 12", "12") and not earns_full_reward("openai/gsm8k", "#### 13", "12")


@pytest.mark.parametrize(
    ("change", "custom", "problem"),
    [
        ({}, False, None),
        ({"data_source": None}, False, "'data_source' is missing"),
        ({"data_source": 3}, True, None),
        ({"data_source": 3}, False, "'data_source' is missing"),
        ({"extra_info": [1]}, True, r"'extra_info' must be an object, not \[1\]"),
        ({"extra_info": None}, False, None),
        ({"data_source": "hiyouga/geometry3k"}, False, "needs a package that is missing"),
        ({"data_source": "searchR1_nq", "reward_model": {"ground_truth": ["x"]}}, False, "an object with 'target'"),
        ({"data_source": "numina_olympiads", "reward_model": {"ground_truth": 12}}, False, None),
        ({"data_source": "apps", "reward_model": {"ground_truth": "{}"}}, False, None),
        ({"reward_model": None}, True, "'reward_model' must be an object with 'ground_truth'"),
        ({"reward_model": {"style": "rule"}}, True, "'reward_model' must be an object with 'ground_truth'"),
        ({"data_source": "mine"}, False, "no reward for data_source='mine'; give your own in reward.custom_reward"),
        ({"data_source": "mine"}, True, None),
        ({"reward_model": {"ground_truth": 12}}, False, r"is a int \(12\).*would score 0; write it as text"),
        ({"reward_model": {"ground_truth": ["12", "12.0"]}}, False, "is a list"),
        ({"reward_model": {"ground_truth": None}}, False, "is a NoneType"),
        ({"reward_model": {"ground_truth": 12}}, True, None),
        ({"data_source": "searchR1_nq", "reward_model": {"ground_truth": {"target": ["x"]}}}, False, None),
    ],
)
def test_rows(change, custom, problem):
    found = reward_problem({**ROW, **change}, custom=custom)
    if problem is None:
        assert found is None
    else:
        import re

        assert re.search(problem, found)


def test_a_whole_number_as_ground_truth_scores_zero_for_a_right_answer():
    """Why it is refused: verl's rule compares text."""
    assert not earns_full_reward("openai/gsm8k", "#### 12", 12)


@pytest.mark.parametrize(
    ("text", "name", "reason"),
    [
        (f"{HEAD}, **kwargs): return 1.0", "compute_score", None),
        (f"{HEAD}): return 1.0", "compute_score", None),
        (f"async {HEAD}, **kwargs): return 1.0", "compute_score", None),
        ("def f(**kwargs): return 1.0", "f", None),
        (
            f"import functools\ndef w(f):\n  @functools.wraps(f)\n  def g(**k): return 1.0\n  return g\n@w\n{HEAD_TWO}",
            "compute_score",
            None,
        ),
        (
            "class compute_score:\n    def __init__(self, **k): pass",
            "compute_score",
            "compute_score is a class; write a func",
        ),
        (
            "class Score:\n    async def __call__(self, **kwargs): return 1.0\ncompute_score = Score()",
            "compute_score",
            "asynchronous in a way that verl does not await",
        ),
        ("class Score:\n    def __call__(self, **kwargs): return 1.0\ncompute_score = Score()", "compute_score", None),
        ("import not_there", "compute_score", r"cannot be imported \(.*not_there"),
        ("raise SystemExit('stop')", "compute_score", r"cannot be imported \(SystemExit: stop\)"),
        ("def (", "compute_score", "cannot be imported"),
        (f"{HEAD}): return 1.0", "reward", r"there is no function 'reward' \(it has compute_score\); set .*\.name"),
        ("compute_score = 3", "compute_score", r"there is no function 'compute_score' \(it has no function\)"),
        (
            "def compute_score(prompts, completions, **kwargs): return []",
            "compute_score",
            "missing a required argument",
        ),
        ("def compute_score(solution_str, ground_truth): return 0", "compute_score", "unexpected keyword argument"),
        ("def compute_score(a, b, c, d): return 0", "compute_score", "cannot be called as verl calls it"),
    ],
)
def test_reward_functions(text, name, reason, stock_config, tmp_path):
    (tmp_path / "mine.py").write_text(text)
    where = f"reward.custom_reward_function.path={tmp_path / 'mine.py'}"
    config = stock_config(where, f"reward.custom_reward_function.name={name}")
    if reason is None:
        check_reward_function(config)
    else:
        with pytest.raises(ValueError, match=reason) as refused:
            check_reward_function(config)
        assert str(refused.value).startswith(where) and "\n" not in str(refused.value)


def test_arguments_of_the_reward_function_and_modules_are_taken(stock_config, tmp_path):
    (tmp_path / "mine.py").write_text(f"{HEAD}, scale=1): return scale")
    where = f"reward.custom_reward_function.path={tmp_path / 'mine.py'}"
    check_reward_function(stock_config(where, "+reward.custom_reward_function.reward_kwargs.scale=2"))
    with pytest.raises(ValueError, match="unexpected keyword argument 'size'"):
        check_reward_function(stock_config(where, "+reward.custom_reward_function.reward_kwargs.size=2"))
    check_reward_function(stock_config("reward.custom_reward_function.path=pkg://fgrpo_plugin.quickstart.task"))
    with pytest.raises(ValueError, match="cannot be imported"):
        check_reward_function(stock_config(f"reward.custom_reward_function.path={tmp_path / 'none.py'}"))
    check_reward_function(stock_config())


def test_what_verl_gives_beside_a_reward_model_and_what_the_remote_manager_refuses(stock_config, tmp_path, monkeypatch):
    where = f"reward.custom_reward_function.path={tmp_path / 'mine.py'}"
    (tmp_path / "mine.py").write_text(f"async {HEAD}): return 1.0")
    with pytest.raises(ValueError, match="unexpected keyword argument 'reward_router_address'"):
        check_reward_function(stock_config(where, "reward.reward_model.enable=true"))
    with pytest.raises(ValueError, match=r"is async, which reward.reward_manager.name=remote refuses"):
        check_reward_function(stock_config(where, "reward.reward_manager.name=remote"))
    (tmp_path / "mine.py").write_text(f"import os\nos.environ['MINE_13']\n{HEAD}): return 1.0")
    with pytest.raises(ValueError, match=r"cannot be imported \(KeyError"):
        check_reward_function(stock_config(where))
    check_reward_function(stock_config(where, "+ray_kwargs.ray_init.runtime_env.env_vars.MINE_13=1"))
    assert "MINE_13" not in os.environ  # the workers' alone
    old = stock_config(f"custom_reward_function.path={tmp_path / 'mine.py'}")
    with pytest.raises(
        ValueError, match=r"custom_reward_function\.path=.* is not read by this verl; set reward\.custom"
    ):
        check_reward_function(old)


def test_a_reward_model_and_a_manager_of_the_users_own_read_what_they_like(stock_config):
    assert reads_rows(stock_config()) and reads_rows(stock_config("reward.reward_manager.name=dapo"))
    assert not reads_rows(stock_config("reward.reward_model.enable=true"))
    assert not reads_rows(stock_config("reward.reward_manager.source=importlib"))
    own = "reward.custom_reward_function.path=mine.py"
    assert reads_rows(stock_config("reward.reward_model.enable=true", own))


def test_a_reward_manager_of_the_users_own_is_loaded_as_verl_loads_it(stock_config, tmp_path):
    file = tmp_path / "manager.py"
    manager = ["reward.reward_manager.source=importlib", f"reward.reward_manager.module.path={file}"]
    named = stock_config(*manager, "reward.reward_manager.name=Mine")
    with pytest.raises(ValueError, match=r"module\.path=.*manager\.py: cannot be imported \(FileNotFoundError"):
        check_reward_manager(named)
    file.write_text("class Other: pass")
    with pytest.raises(ValueError, match=r"there is no 'Mine' in it; set reward\.reward_manager\.name\."):
        check_reward_manager(named)
    file.write_text("class Mine: pass")
    check_reward_manager(named)


def test_a_reward_function_that_the_workers_alone_may_have_is_not_refused(stock_config, capsys):
    path = "reward.custom_reward_function.path=of/a/user.py"
    check_reward_function(stock_config(path, "+ray_kwargs.ray_init.runtime_env.working_dir=/a/users"))
    said = capsys.readouterr().out
    assert "path=of/a/user.py: cannot be imported" in said and "runtime_env.working_dir; the workers tell" in said
    with pytest.raises(ValueError, match=r"path=of/a/user\.py: cannot be imported \(FileNotFoundError"):
        check_reward_function(stock_config(path))
