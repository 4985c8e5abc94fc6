"""Tools that verl's workers could not load are refused before Ray; what the workers alone have is said."""

import pytest

from fgrpo_plugin.host.settings.tools import MULTI_TURN, check_tools

TOOL = """
from verl.tools.function_tool import function_tool
@function_tool
def {name}(key: str) -> str:
    '''Look a key up.

    Args:
        key: what to look up.
    '''
    return key
"""
NATIVE = "class_name: verl.tools.base_tool.BaseTool"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("from verl.tools.function_tool import function_tool\n@function_tool\ndef f(a): return a", "cannot be loaded"),
        ("import not_there", r"cannot be loaded \(.*not_there"),
        ("raise SystemExit('stop')", r"cannot be loaded \(SystemExit: stop"),
    ],
)
def test_functions_that_cannot_be_loaded(stock_config, tmp_path, capsys, text, reason):
    tools = tmp_path / "tools.py"
    tools.write_text(text)
    override = f"{MULTI_TURN}.function_tool_path={tools}"
    with pytest.raises(ValueError, match=f"function_tool_path=.*tools.py: .*{reason}"):
        check_tools(stock_config(override))
    check_tools(stock_config(override, "+ray_kwargs.ray_init.runtime_env.pip=[some]"))
    assert "cannot be loaded" in capsys.readouterr().out


def test_a_file_without_tools_is_named_since_verl_goes_on(stock_config, tmp_path, capsys):
    (tmp_path / "tools.py").write_text("x = 1")
    check_tools(stock_config(f"{MULTI_TURN}.function_tool_path={tmp_path / 'tools.py'}"))
    assert "no function with @function_tool" in capsys.readouterr().out


def test_a_reward_function_may_have_imported_the_same_tools(stock_config, tmp_path, capsys):
    import importlib.util

    from verl.tools.function_tool import FUNCTION_TOOL_REGISTRY

    file = tmp_path / "shared_tools.py"
    file.write_text(TOOL.format(name="shared_look_up"))
    spec = importlib.util.spec_from_file_location("shared_tools_of_a_reward", file)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    before = dict(FUNCTION_TOOL_REGISTRY)
    assert "shared_look_up" in before
    check_tools(stock_config(f"{MULTI_TURN}.function_tool_path={file}"))
    assert before == FUNCTION_TOOL_REGISTRY and not capsys.readouterr().out
    del FUNCTION_TOOL_REGISTRY["shared_look_up"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- x", "must hold a list `tools`"),
        ("tools:", "must hold a list `tools`"),
        ("tools: [x]", "tool 0: it is no section"),
        (
            "tools:\n- class_name: not_there.Tool\n  config: {type: native}",
            "the class not_there.Tool cannot be imported",
        ),
        ("tools:\n- class_name: Tool\n  config: {type: native}", "the class Tool cannot be imported"),
        (f"tools:\n- {NATIVE}", "config.type is None; verl knows native"),
        (f"tools:\n- {NATIVE}\n  config: {{type: mcp}}", "config.type is 'mcp'; verl knows native"),
        (
            f"tools:\n- {NATIVE}\n  config: {{type: native}}\n  tool_schema: {{type: 3}}",
            "tool_schema is none that verl",
        ),
    ],
)
def test_lists_of_tools_that_verl_could_not_make(stock_config, tmp_path, text, reason):
    listed = tmp_path / "tools.yaml"
    listed.write_text(text)
    with pytest.raises(ValueError, match=f"tool_config_path=.*tools.yaml: .*{reason}") as refused:
        check_tools(stock_config(f"{MULTI_TURN}.tool_config_path={listed}"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        f"tools:\n- {NATIVE}\n  config: {{type: native}}",
        "base: verl.tools.base_tool\nkind: native\ntools:\n- class_name: ${base}.BaseTool\n  config: {type: '${kind}'}",
        f"mine:\n- {NATIVE}\n  config: &c {{type: native}}\n- {NATIVE}\n  config: {{<<: *c, n: 1}}\ntools: ${{mine}}",
        f"tools:\n- {NATIVE}\n  config: {{type: native, url: '${{oc.env:OF_A_NODE}}'}}",
        "tools:\n- class_name: ${oc.env:OF_A_NODE}\n  config: {type: native}",
        "tools: []",
    ],
)
def test_lists_of_tools_that_verl_may_make(stock_config, tmp_path, capsys, text):
    listed = tmp_path / "tools.yaml"
    listed.write_text(text)
    check_tools(stock_config(f"{MULTI_TURN}.tool_config_path={listed}"))
    assert ("class_name cannot be read" in capsys.readouterr().out) == ("class_name: ${oc.env" in text)
