"""Agent loops and tools that verl's workers could not use are refused before Ray, and several rows a response too."""

import itertools

import pytest

from fgrpo_plugin.host.settings.agent_loops import AGENT, MULTI_TURN, check_agent_loops
from fgrpo_plugin.host.settings.prompts import check_prompts
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
        (" -> AgentLoopOutput | list[AgentLoopOutput]", True),
        (" -> Union[AgentLoopOutput, List[AgentLoopOutput]]", True),
        (" -> Awaitable[list[AgentLoopOutput]]", True),
        (" -> 'list[AgentLoopOutput]'", True),
        (" -> 'list[NotThere]'", True),
    ],
)
def test_a_loop_of_several_outputs_a_session_is_refused(stock_config, loops, returned, several):
    config = stock_config(loops(returned), MINE)
    if not several:
        check_agent_loops(config, None)
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


def test_a_manager_of_ones_own_knows_its_loops_itself(stock_config):
    manager = f"+{AGENT}.agent_loop_manager_class=mine.Manager"
    loops = check_agent_loops(stock_config(manager, f"{AGENT}.default_agent_loop=anything"), None)
    assert loops.problem({"agent_name": "whatever"}) is None


def test_the_style_of_tool_calls_is_one_that_verl_reads(stock_config):
    chosen = [f"{AGENT}.default_agent_loop=tool_agent", f"{MULTI_TURN}.format=none_such"]
    with pytest.raises(
        ValueError, match=r"multi_turn.format=none_such cannot be used .*Unknown tool parser: none_such"
    ):
        check_agent_loops(stock_config(*chosen), build_tokenizer())
    check_agent_loops(stock_config(chosen[1]), build_tokenizer())  # the single turn reads none


def test_tools_are_loaded_or_refused(stock_config, tmp_path):
    tools = tmp_path / "tools.py"
    for text, reason in [
        ("from verl.tools.function_tool import function_tool\n@function_tool\ndef f(a): return a", "cannot be loaded"),
        ("import not_there", r"cannot be loaded \(.*not_there"),
        ("x = 1", "it has no function with @function_tool"),
    ]:
        tools.write_text(text)
        with pytest.raises(ValueError, match=f"function_tool_path=.*tools.py: .*{reason}"):
            check_agent_loops(stock_config(f"{MULTI_TURN}.function_tool_path={tools}"), None)
        tools = tmp_path / f"more_{tools.name}"  # verl keeps what it has loaded by its path
    listed = tmp_path / "tools.yaml"
    for text, reason in [
        ("- x", "must hold a list `tools`"),
        (
            "tools:\n- class_name: not_there.Tool\n  config: {type: native}",
            "the class not_there.Tool cannot be imported",
        ),
    ]:
        listed.write_text(text)
        with pytest.raises(ValueError, match=f"tool_config_path=.*tools.yaml: .*{reason}"):
            check_agent_loops(stock_config(f"{MULTI_TURN}.tool_config_path={listed}"), None)
    listed.write_text("tools:\n- class_name: verl.tools.base_tool.BaseTool\n  config: {type: native}")
    check_agent_loops(stock_config(f"{MULTI_TURN}.tool_config_path={listed}"), None)
