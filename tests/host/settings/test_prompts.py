"""Prompts are looked at before anything starts: what verl renders, rewards, filters and batches."""

import copy

import pandas as pd
import pytest

from fgrpo_plugin.host.settings.prompts import check_prompts, row_problem
from fgrpo_plugin.host.settings.switch import complete
from fgrpo_plugin.quickstart.model import build_tokenizer
from tests.support.overrides import SWITCH

USER = {"role": "user", "content": "1+1="}
ROW = {"prompt": [USER], "data_source": "openai/gsm8k", "reward_model": {"style": "rule", "ground_truth": "2"}}
PARTS = [{"type": "text", "text": "1+1="}]


def render(template=None):
    tokenizer = copy.deepcopy(build_tokenizer())
    tokenizer.chat_template = template or tokenizer.chat_template
    return lambda messages: tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


PARTS_TEMPLATE = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endif %}{% endfor %}"
)
PRINTS_TEMPLATE = "{% for m in messages %}{{ m['content'] | string }}{% endfor %}"
SILENT_TEMPLATE = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"


@pytest.mark.parametrize(
    ("prompt", "template", "problem"),
    [
        ([USER], None, None),
        ("1+1=", None, "'prompt' is text; verl renders messages"),
        ('[{"role": "user", "content": "1+1="}]', None, "'prompt' is text"),
        ([], None, "must be a list of messages"),
        (None, None, "must be a list of messages"),
        (["1+1="], None, "must be a list of messages"),
        ([{"content": "x"}], None, "a message without role or content"),
        ([{"role": "user", "content": None}], None, "a message without role or content"),
        ([{"role": "user", "content": PARTS}], PARTS_TEMPLATE, None),
        ([{"role": "user", "content": PARTS}], PRINTS_TEMPLATE, "does not render the user's content as text"),
        ([USER, {"role": "assistant", "content": None, "tool_calls": [1]}, USER], SILENT_TEMPLATE, None),
        ([USER, {"role": "assistant", "content": "<think>x</think>2"}, USER], SILENT_TEMPLATE, None),
        ([{"role": "user", "content": "a\n\n b"}], "{{ messages[0]['content'].split() | join(' ') }}", None),
        ([{"role": "user", "content": 12}], PRINTS_TEMPLATE, None),
        ([{"role": "system", "content": "Be short."}, USER], SILENT_TEMPLATE, "does not render the system's content"),
        ([USER], "{{ raise_exception('no\nway') }}", r"the model's chat template cannot render 'prompt' \(no"),
    ],
)
def test_prompts(prompt, template, problem):
    import re

    found = row_problem({"prompt": prompt}, "prompt", render(template))
    assert (found is None) if problem is None else re.search(problem, found)


def test_content_in_parts_fails_in_the_quick_starts_template():
    found = row_problem({"prompt": [{"role": "user", "content": PARTS}]}, "prompt", render())
    assert "chat template cannot render" in found and "a list of parts: write it as text" in found
    assert row_problem({"prompt": [{"role": "user", "content": PARTS}]}, "prompt", None) is None


def run(stock_config, inputs, tmp_path, rows, *more):
    file = tmp_path / "mine.parquet"
    pd.DataFrame(rows).to_parquet(file)
    small = [f"data.train_files={file}", "data.train_batch_size=4", "actor_rollout_ref.actor.ppo_mini_batch_size=4"]
    complete(stock_config(*inputs[1:], *small, SWITCH, "trainer.n_gpus_per_node=1", *more))


LONG = {**ROW, "prompt": [{**USER, "content": "1" * 90}]}
FILTERED = ["data.max_prompt_length=64", "data.filter_overlong_prompts=true"]
BAD = {**ROW, "data_source": "x"}


@pytest.mark.parametrize(
    ("rows", "more", "reason"),
    [
        ([LONG] * 600 + [ROW] * 4, FILTERED, None),  # the first rows do not decide
        ([LONG] * 600 + [ROW] * 3, FILTERED, "3 of 603 prompts have at most"),
        ([ROW] * 600 + [{**ROW, "prompt": [{"role": None, "content": None}]}], ["data.train_batch_size=601"], None),
        (
            [ROW] * 600 + [{**ROW, "prompt": [{"role": None, "content": None}]}],
            ["data.train_batch_size=601", FILTERED[1]],
            "600 of 601 prompts have at most",
        ),
        ([ROW] * 4 + [BAD], ["data.train_max_samples=4", "data.shuffle=false"], None),  # never read
        (
            [ROW] * 4,
            ["reward.reward_manager.name=nope"],
            "reward.reward_manager.name=nope is not known; choose among dapo",
        ),
        ([ROW] * 4, ["trainer.test_freq=null", "data.train_max_samples=null", "data.val_max_samples=null"], None),
        ([BAD] * 4, ["actor_rollout_ref.rollout.agent.agent_loop_config_path=mine.yaml"], None),  # scores itself
        ([{**ROW, "extra_info": "x"}] * 4, [], "row 0: 'extra_info' must be an object, not 'x'"),
        ([ROW] * 4, ["data.train_files=[]"], "data.train_files names no file"),
        ([ROW] * 4, [], None),
        ([ROW] * 4, ["data.train_max_samples=3"], "data.train_files: 3 rows are less than a batch of 4"),
        ([ROW] * 3, [], "data.train_files: 3 rows are less than a batch of 4, so no step would be made"),
        ([ROW] * 3, ["data.gen_batch_size=2"], "data.train_files: 3 rows are less than a batch of 4"),
        ([ROW] * 8, ["data.gen_batch_size=12"], None),
        (
            [ROW] * 3 + [{**ROW, "data_source": "x"}],
            [],
            r"mine\.parquet: row 3: verl has no reward for data_source='x'",
        ),
        ([{**ROW, "data_source": "x"}] * 4, ["reward.reward_manager.source=importlib"], None),
        ([{"prompt": [USER]}] * 4, [], r"row 0: 'data_source' is missing"),
        ([{"prompt": "1+1="}] * 4, [], r"row 0: 'prompt' is text"),
        ([{**ROW, "prompt": [{**USER, "content": "1" * 90}]}] * 4, ["data.max_prompt_length=64"], None),
        (
            [{**ROW, "prompt": [{**USER, "content": "1" * 90}]}] * 4,
            ["data.max_prompt_length=64", "data.filter_overlong_prompts=true"],
            "0 of 4 prompts have at most data.max_prompt_length=64 tokens, .* less than a batch of 4",
        ),
        (
            [ROW] * 3 + [{**ROW, "prompt": [{**USER, "content": "1" * 90}]}],
            ["data.max_prompt_length=64", "data.filter_overlong_prompts=true"],
            "3 of 4 prompts have at most",
        ),
        (
            [ROW] * 4 + [{**ROW, "prompt": [{**USER, "content": "1" * 90}]}],
            ["data.max_prompt_length=64", "data.filter_overlong_prompts=true"],
            None,
        ),
    ],
)
def test_runs(stock_config, inputs, tmp_path, rows, more, reason, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("- {name: mine, _target_: mine.Loop}")
    if reason is None:
        run(stock_config, inputs, tmp_path, rows, *more)
        cut = "4 of 4 prompts are longer than data.max_prompt_length=64; verl cuts their beginning off"
        assert (cut in capsys.readouterr().out) == (more == ["data.max_prompt_length=64"])
    else:
        with pytest.raises(ValueError, match=reason):
            run(stock_config, inputs, tmp_path, rows, *more)


def test_the_reward_function_is_checked_and_spares_verls_rules(stock_config, inputs, tmp_path):
    (tmp_path / "mine.py").write_text("def compute_score(solution_str, ground_truth): return 0")
    named = f"reward.custom_reward_function.path={tmp_path / 'mine.py'}"
    own = [{**ROW, "data_source": "mine", "reward_model": {"ground_truth": 2}}] * 4
    with pytest.raises(ValueError, match="cannot be called as verl calls it"):
        run(stock_config, inputs, tmp_path, own, named)
    (tmp_path / "mine.py").write_text("def compute_score(**kwargs): return 0")
    run(stock_config, inputs, tmp_path, own, named)


def test_validation_files_and_rows_with_images_are_looked_at_too(stock_config, inputs, tmp_path):
    held_out = tmp_path / "val.parquet"
    pd.DataFrame([{**ROW, "data_source": "x"}]).to_parquet(held_out)
    with pytest.raises(ValueError, match=r"data\.val_files=.*val\.parquet: row 0: verl has no reward"):
        run(stock_config, inputs, tmp_path, [ROW] * 4, f"data.val_files={held_out}")
    seen = [{**ROW, "prompt": [{"role": "user", "content": PARTS}], "images": ["a.png"]}] * 4
    run(stock_config, inputs, tmp_path, seen)
    with pytest.raises(ValueError, match="chat template"):
        run(stock_config, inputs, tmp_path, [{**row, "images": None} for row in seen])


def test_rows_that_are_never_validated_on_are_not_refused(stock_config, inputs, tmp_path):
    held_out = tmp_path / "val.parquet"
    pd.DataFrame([BAD]).to_parquet(held_out)
    never = [f"data.val_files={held_out}", "trainer.val_before_train=false", "trainer.test_freq=-1"]
    run(stock_config, inputs, tmp_path, [ROW] * 4, *never)
    with pytest.raises(ValueError, match="no reward"):
        run(stock_config, inputs, tmp_path, [ROW] * 4, *never[:2], "trainer.test_freq=5")


def test_every_file_is_looked_at(stock_config, inputs, tmp_path):
    pd.DataFrame([ROW] * 600).to_parquet(tmp_path / "first.parquet")
    pd.DataFrame([ROW] * 20 + [BAD]).to_parquet(tmp_path / "second.parquet")
    files = f"data.train_files=[{tmp_path / 'first.parquet'},{tmp_path / 'second.parquet'}]"
    with pytest.raises(ValueError, match=r"second\.parquet: row 20: verl has no reward"):
        run(stock_config, inputs, tmp_path, [ROW] * 4, files)


def test_a_model_without_a_chat_template_is_refused(stock_config, inputs, tmp_path):
    bare = copy.deepcopy(build_tokenizer())
    bare.chat_template = None
    (tmp_path / "model" / "chat_template.jinja").unlink(missing_ok=True)
    bare.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="its tokenizer has no chat template, so that no prompt can be rendered"):
        run(stock_config, inputs, tmp_path, [ROW] * 4)


def test_a_data_set_class_of_the_users_own_reads_what_it_likes(stock_config, inputs, tmp_path):
    (tmp_path / "set.py").write_text("import torch\nclass Mine(torch.utils.data.Dataset): pass")
    own = [f"data.custom_cls.path={tmp_path / 'set.py'}", "data.custom_cls.name=Mine"]
    run(stock_config, inputs, tmp_path, [{"anything": 1}], *own)


def test_validation_on_what_is_trained_on_is_said(stock_config, inputs, tmp_path, capsys):
    said = "rows.parquet is trained on too: validation tells nothing of held-out prompts"
    complete(stock_config(*inputs, SWITCH))
    assert said in capsys.readouterr().out
    run(stock_config, inputs, tmp_path, [ROW] * 4)
    assert "is trained on too" not in capsys.readouterr().out


@pytest.mark.parametrize("asked, right", [([4] * 1024, True), ([2] * 1024, True), ([4] * 1000 + [5] * 24, False)])
def test_prompts_that_ask_for_more_responses_than_are_counted_with(stock_config, inputs, tmp_path, asked, right):
    file = tmp_path / "asked.parquet"
    rows = pd.read_parquet(tmp_path / "rows.parquet").assign(__rollout_n__=asked)
    rows.to_parquet(file)
    config = stock_config(*inputs, SWITCH, f"data.train_files={file}")
    if right:
        check_prompts(config, None)
        return
    with pytest.raises(ValueError, match=r"row 1000: __rollout_n__=5 must be a whole number from 2 to .*rollout.n=4"):
        check_prompts(config, None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, r"data\.custom_cls\.path=.*mine\.py: cannot be imported \(FileNotFoundError"),
        ("import no_such_package", r"cannot be imported \(ModuleNotFoundError: No module named 'no_such_package'"),
        ("class Other: pass", r"mine\.py: there is no 'Mine' in it; set data\.custom_cls\.name"),
        ("class Mine: pass", r"data\.custom_cls\.name=Mine is no torch\.utils\.data\.Dataset"),
        ("Mine = 1", r"data\.custom_cls\.name=Mine is no torch\.utils\.data\.Dataset"),
        ("import torch\nclass Mine(torch.utils.data.Dataset): pass", None),
    ],
)
def test_a_data_set_class_of_the_users_own_is_loaded_as_verl_loads_it(stock_config, inputs, tmp_path, text, reason):
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    config = stock_config(*inputs, SWITCH, f"data.custom_cls.path={tmp_path / 'mine.py'}", "data.custom_cls.name=Mine")
    if reason is None:
        check_prompts(config, None)
    else:
        with pytest.raises(ValueError, match=reason):
            check_prompts(config, None)
