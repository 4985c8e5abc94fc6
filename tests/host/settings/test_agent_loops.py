"""Agent loops and tools that verl's workers could not use are refused before Ray, and several rows a response too."""

import itertools

import pytest

from fgrpo_plugin.host.settings.agent_loops import AGENT, check_agent_loops
from fgrpo_plugin.host.settings.prompts import check_prompts
from fgrpo_plugin.host.settings.tools import MULTI_TURN
from fgrpo_plugin.quickstart.model import build_tokenizer

LOOP = """
import asyncio
from typing import *
from collections.abc import Sequence
from verl.experimental.agent_loop import AgentLoopBase, AgentLoopOutput

class Mine(AgentLoopBase):
    async def run(self, sampling_params, **kwargs){returned}:
        return None
"""


NUMBERS = itertools.count()  # a module is imported once in a process


@pytest.fixture
def loops(tmp_path, monkeypatch):
    """Write an agent loop of one's own, and verl's file that names it; the override."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(returned: str = "", target: str | None = None, text: str = LOOP) -> str:
        module = f"loops_of_a_user_{next(NUMBERS)}"
        (tmp_path / f"{module}.py").write_text(text.format(returned=returned))
        file = tmp_path / f"{module}.yaml"
        file.write_text(f"- name: mine\n  _target_: {target or module + '.Mine'}\n")
        return f"{AGENT}.agent_loop_config_path={file}"

    return write


MINE = f"{AGENT}.default_agent_loop=mine"


@pytest.mark.parametrize("name", [None, "single_turn_agent", "tool_agent"])
def test_verls_own_loops_give_one_output(stock_config, name):
    overrides = [f"{AGENT}.default_agent_loop={name}"] if name else []
    check_agent_loops(stock_config(*overrides), build_tokenizer())


@pytest.mark.parametrize(
    ("returned", "several"),
    [
        ("", False),  # nothing is said: the first step tells
        (" -> AgentLoopOutput", False),
        (" -> Optional[AgentLoopOutput]", False),
        (" -> 'AgentLoopOutput'", False),
        (" -> 'NotThere'", False),
        (" -> dict[str, AgentLoopOutput]", False),
        (" -> list[AgentLoopOutput]", True),
        (" -> List[AgentLoopOutput]", True),
        (" -> list", True),
        (" -> Sequence[AgentLoopOutput]", True),
        (" -> tuple[AgentLoopOutput, ...]", True),
        (" -> AgentLoopOutput | list[AgentLoopOutput]", None),
        (" -> Union[AgentLoopOutput, List[AgentLoopOutput]]", None),
        (" -> Awaitable[list[AgentLoopOutput]]", True),
        (" -> 'list[AgentLoopOutput]'", True),
        (" -> 'list[NotThere]'", True),
        (" -> 'list[NotThere] | AgentLoopOutput'", None),
        (" -> Awaitable[AgentLoopOutput | list[AgentLoopOutput]]", None),
        (" -> Coroutine[Any, Any, AgentLoopOutput]", False),
    ],
)
def test_a_loop_of_several_outputs_a_session_is_refused_and_one_of_perhaps_several_named(
    stock_config, loops, capsys, returned, several
):
    config = stock_config(loops(returned), MINE)
    if not several:
        check_agent_loops(config, None)
        assert ("Mine.run says that it may return a list" in capsys.readouterr().out) == (several is None)
        return
    with pytest.raises(
        ValueError, match=r"default_agent_loop=mine: .*\.Mine\.run says that it returns a list"
    ) as refused:
        check_agent_loops(config, None)
    assert "set algorithm.adv_estimator=grpo." in str(refused.value)


def test_one_that_no_row_uses_is_not_looked_at_and_one_that_a_row_names_is(stock_config, loops, inputs, tmp_path):
    import pandas as pd

    config = stock_config(*inputs, loops(" -> list[AgentLoopOutput]"))
    tokenizer = build_tokenizer()
    assert check_agent_loops(config, tokenizer).problem({"prompt": "1"}) is None
    check_prompts(config, tokenizer)
    rows = pd.read_parquet(tmp_path / "rows.parquet")
    for name, reason in [
        ("mine", "row 3: agent_name=mine: .* returns a list of outputs"),
        ("other", "row 3: agent_name=other: there is no agent loop of this name; choose among mine, single_turn_agent"),
    ]:
        rows["agent_name"] = [name if i == 3 else "single_turn_agent" for i in range(len(rows))]
        rows.to_parquet(tmp_path / "rows.parquet")
        with pytest.raises(ValueError, match=f"data.train_files=.*{reason}"):
            check_prompts(config, tokenizer)


def test_what_cannot_be_found_or_imported_is_named(stock_config, loops, tmp_path):
    for overrides, reason in [
        ([f"{AGENT}.default_agent_loop=mine"], "default_agent_loop=mine: there is no agent loop of this name"),
        ([f"{AGENT}.agent_loop_config_path={tmp_path}/none.yaml"], "there is no such file; give its full path"),
        ([loops(target="not_there.Mine"), MINE], r"the class not_there.Mine cannot be imported \(.*not_there"),
        ([loops(text="raise SystemExit('stop')"), MINE], r"cannot be imported \(SystemExit: stop\)"),
        ([loops(text="import this_is_not_there"), MINE], r"cannot be imported \(.*this_is_not_there"),
    ]:
        with pytest.raises(ValueError, match=reason) as refused:
            check_agent_loops(stock_config(*overrides), None)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name: mine", "must be a list of agent loops"),
        ("- mine", "must be a list of agent loops"),
        ("- name: mine", "loop 0 has no name or no _target_"),
        ("- [", "cannot be read"),
    ],
)
def test_files_of_agent_loops_that_are_none(stock_config, tmp_path, text, reason):
    (tmp_path / "loops.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"agent_loop_config_path=.*loops.yaml: .*{reason}"):
        check_agent_loops(stock_config(f"{AGENT}.agent_loop_config_path={tmp_path / 'loops.yaml'}"), None)


def test_a_manager_of_ones_own_knows_its_loops_itself(stock_config, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "manager_of_a_user.py").write_text("class Manager: pass")
    manager = f"+{AGENT}.agent_loop_manager_class=manager_of_a_user."
    with pytest.raises(ValueError, match=r"agent_loop_manager_class=manager_of_a_user.Other: .* cannot be imported"):
        check_agent_loops(stock_config(f"{manager}Other"), None)
    manager += "Manager"
    loops = check_agent_loops(stock_config(manager, f"{AGENT}.default_agent_loop=anything"), None)
    assert loops.problem({"agent_name": "whatever"}) is None


def test_the_style_of_tool_calls_is_one_that_verl_reads(stock_config):
    chosen = [f"{AGENT}.default_agent_loop=tool_agent", f"{MULTI_TURN}.format=none_such"]
    with pytest.raises(
        ValueError, match=r"multi_turn.format=none_such cannot be used .*Unknown tool parser: none_such"
    ):
        check_agent_loops(stock_config(*chosen), build_tokenizer())
    check_agent_loops(stock_config(chosen[1]), build_tokenizer())  # the single turn reads none


def test_a_loop_is_found_wherever_hydra_finds_it(stock_config, loops, tmp_path):
    nested = LOOP + "\nclass Outer:\n    Inner = Mine\n\ndef make(**given){returned}:\n    return Mine(**given)\n"
    for name in ("Outer.Inner", "make"):
        override = loops(text=nested)
        file = tmp_path / override.rpartition("/")[2]
        file.write_text(file.read_text().replace(".Mine", f".{name}"))
        check_agent_loops(stock_config(override, MINE), None)


def test_what_verl_could_not_make_or_run_is_refused(stock_config, loops):
    for text, reason in [
        ("class Mine:\n    def __init__(self, **given){returned}: pass", "has no method run"),
        ("Mine = 3", "is no class"),
        (
            LOOP + "    def __init__(self, trainer_config, server_manager, tokenizer, processor): pass",
            r"cannot be made as verl makes it, by name with .*name, .*tools.*; give it \*\*kwargs",
        ),
    ]:
        with pytest.raises(ValueError, match=rf"default_agent_loop=mine: .*{reason}"):
            check_agent_loops(stock_config(loops(text=text), MINE), None)


def test_a_file_may_have_anchors_and_refer_to_the_workers_variables(stock_config, loops, tmp_path, capsys):
    module = loops().rpartition("/")[2].removesuffix(".yaml")
    file = tmp_path / "several.yaml"
    file.write_text(
        f"- &one\n  name: other\n  _target_: {module}.Mine\n- <<: *one\n  name: mine\n"
        "- name: by_variable\n  _target_: ${oc.env:FGRPO_TEST_MODULE}.Mine\n"
    )
    override = f"{AGENT}.agent_loop_config_path={file}"
    variable = "+ray_kwargs.ray_init.runtime_env.env_vars.FGRPO_TEST_MODULE"
    check_agent_loops(stock_config(override, MINE), None)
    by_variable = f"{AGENT}.default_agent_loop=by_variable"
    check_agent_loops(stock_config(override, by_variable, f"{variable}={module}"), None)
    assert not capsys.readouterr().out
    with pytest.raises(ValueError, match=r"the class none.Mine cannot be imported"):
        check_agent_loops(stock_config(override, by_variable, f"{variable}=none"), None)
    check_agent_loops(stock_config(override, by_variable), None)  # a node may have the variable
    assert "_target_ cannot be read" in capsys.readouterr().out
    file.write_text("# none yet\n")
    check_agent_loops(stock_config(override), None)


def test_a_loop_of_ones_own_named_as_verls_may_read_calls_as_it_likes(stock_config, loops, tmp_path):
    override, style = loops(), f"{MULTI_TURN}.format=none_such"
    file = tmp_path / override.rpartition("/")[2]
    file.write_text(file.read_text().replace("name: mine", "name: tool_agent"))
    check_agent_loops(stock_config(override, f"{AGENT}.default_agent_loop=tool_agent", style), build_tokenizer())
    like_verls = (
        "from verl.experimental.agent_loop import ToolAgentLoop\nclass Mine(ToolAgentLoop):\n    pass{returned}"
    )
    with pytest.raises(ValueError, match=r"default_agent_loop=mine: .*format=none_such cannot be used"):
        check_agent_loops(stock_config(loops(text=like_verls), MINE, style), build_tokenizer())


@pytest.mark.parametrize(
    "more",
    [
        "+ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_MODULES=a_users",
        "actor_rollout_ref.model.external_lib=a_users",
        "data.custom_cls.path=a_users.py",
        "+ray_kwargs.ray_init.runtime_env.working_dir=/a/users",
    ],
)
def test_names_that_the_workers_modules_may_register_are_not_refused(stock_config, capsys, more):
    check_agent_loops(stock_config(MINE, more), None)
    said = capsys.readouterr().out
    assert "there is no agent loop named mine" in said and more.lstrip("+").partition("=")[0] in said
    style = [f"{AGENT}.default_agent_loop=tool_agent", f"{MULTI_TURN}.format=none_such", more]
    check_agent_loops(stock_config(*style), build_tokenizer())
    assert "format=none_such cannot be used" in capsys.readouterr().out


def test_modules_and_files_that_the_workers_alone_have_are_not_refused(stock_config, loops, capsys, monkeypatch):
    for code in ("+ray_kwargs.ray_init.runtime_env.py_modules=[/a/users]", "+ray_kwargs.ray_init.address=ray://head:1"):
        check_agent_loops(stock_config(loops(target="of_a_user.Mine"), MINE, code), None)
        assert "the class of_a_user.Mine cannot be imported" in capsys.readouterr().out
        check_agent_loops(stock_config(f"{AGENT}.agent_loop_config_path=of/a/user.yaml", MINE, code), None)
        assert "agent_loop_config_path=of/a/user.yaml: there is no such file" in capsys.readouterr().out
    relative = stock_config(f"{AGENT}.agent_loop_config_path=of/a/user.yaml", MINE)
    with pytest.raises(ValueError, match="there is no such file; give its full path"):
        check_agent_loops(relative, None)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # where Ray was started, there it may lie
    check_agent_loops(relative, None)
    with pytest.raises(ValueError, match="there is no such file"):
        check_agent_loops(stock_config(f"{AGENT}.agent_loop_config_path=/of/a/user.yaml", MINE), None)


def test_a_relative_path_is_looked_for_where_verl_looks(stock_config, loops, tmp_path, monkeypatch):
    name = loops().rpartition("/")[2]
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path)
    check_agent_loops(stock_config(f"{AGENT}.agent_loop_config_path={name}", MINE), None)
    monkeypatch.chdir(tmp_path / "below")
    with pytest.raises(ValueError, match="verl looks for it in the working directory alone; give its full path"):
        check_agent_loops(stock_config(f"{AGENT}.agent_loop_config_path=../{name}", MINE), None)


def test_a_path_for_the_workers_python_is_looked_in(stock_config, loops, tmp_path):
    import sys

    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "on_the_workers_path.py").write_text(LOOP.format(returned=""))
    before = list(sys.path)
    path = f"+ray_kwargs.ray_init.runtime_env.env_vars.PYTHONPATH={tmp_path / 'theirs'}"
    check_agent_loops(stock_config(loops(target="on_the_workers_path.Mine"), MINE, path), None)
    assert sys.path == before


def test_rows_without_the_column_that_others_have_get_none_from_verl(stock_config, inputs, tmp_path, capsys):
    import pandas as pd

    rows = pd.read_parquet(tmp_path / "rows.parquet")
    rows["agent_name"] = "single_turn_agent"
    rows.to_parquet(tmp_path / "named.parquet")
    both = f"data.train_files=[{tmp_path / 'rows.parquet'},{tmp_path / 'named.parquet'}]"
    with pytest.raises(ValueError, match=r"rows.parquet: row 0: agent_name is None, while other rows have theirs"):
        check_prompts(stock_config(*inputs, both), build_tokenizer())
    rows.loc[2, "agent_name"] = None
    rows.to_parquet(tmp_path / "named.parquet")
    with pytest.raises(ValueError, match="row 2: agent_name is None; write the name of an agent loop"):
        check_prompts(stock_config(*inputs, f"data.train_files={tmp_path / 'named.parquet'}"), build_tokenizer())
    null = f"{AGENT}.default_agent_loop=null"
    with pytest.raises(ValueError, match="default_agent_loop is None; write the name"):
        check_prompts(stock_config(*inputs, null), build_tokenizer())
    rows["agent_name"] = "single_turn_agent"
    rows.to_parquet(tmp_path / "named.parquet")
    check_prompts(
        stock_config(*inputs, null, *(f"data.{of}_files={tmp_path / 'named.parquet'}" for of in ("train", "val"))),
        build_tokenizer(),
    )


def test_rows_that_are_never_validated_on_may_name_any_loop(stock_config, inputs, tmp_path):
    import pandas as pd

    rows = pd.read_parquet(tmp_path / "rows.parquet")
    rows["agent_name"] = "none_such"
    rows.to_parquet(tmp_path / "val.parquet")
    config = [*inputs, f"data.val_files={tmp_path / 'val.parquet'}", "trainer.test_freq=-1"]
    check_prompts(stock_config(*config, "trainer.val_before_train=false"), build_tokenizer())
    with pytest.raises(ValueError, match=r"val_files=.* agent_name=none_such"):
        check_prompts(stock_config(*config, "trainer.val_before_train=true"), build_tokenizer())


def test_what_nothing_can_be_said_of_is_not_refused(stock_config, loops, tmp_path):
    strict = LOOP + "    def __init__(self, trainer_config): pass"
    for text, old, new in [
        (LOOP, "name: mine", "name: ${oc.env:OF_A_NODE}"),  # it may be the one that is asked for
        (strict, "name: mine", "name: mine\n  _args_: []"),
    ]:
        override = loops(text=text)
        file = tmp_path / override.rpartition("/")[2]
        file.write_text(file.read_text().replace(old, new))
        check_agent_loops(stock_config(override, MINE), None)
    made_otherwise = (
        "from verl.experimental.agent_loop import ToolAgentLoop\nclass Mine(ToolAgentLoop):\n"
        "    def __init__(self, **given){returned}: pass"
    )
    style = f"{MULTI_TURN}.format=none_such"
    check_agent_loops(stock_config(loops(text=made_otherwise), MINE, style), build_tokenizer())


def test_loops_of_before_verl_gave_tools_and_abstract_ones_are_refused(stock_config, loops):
    base = "from verl.experimental.agent_loop import AgentLoopBase\nclass Mine(AgentLoopBase):{returned}\n"
    of_before = "trainer_config, server_manager, tokenizer, processor, dataset_cls, data_config, hf_model_type, name"
    for text, reason in [
        (base + "    pass", "has no method run, or another one"),
        (LOOP + f"    def __init__(self, {of_before}): pass", "unexpected keyword argument 'tools'"),
    ]:
        with pytest.raises(ValueError, match=reason):
            check_agent_loops(stock_config(loops(text=text), MINE), None)


def test_a_column_that_later_json_rows_alone_have_is_one_of_all(stock_config, inputs, tmp_path):
    import pandas as pd

    file = tmp_path / "rows.jsonl"
    pd.read_parquet(tmp_path / "rows.parquet").to_json(file, orient="records", lines=True)
    first, second, *rest = file.read_text().splitlines()
    file.write_text("\n".join([first, second[:-1] + ', "agent_name": "single_turn_agent"}', *rest]) + "\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl: row 0: agent_name is None, while other rows have theirs"):
        check_prompts(stock_config(*inputs, f"data.train_files={file}"), build_tokenizer())
