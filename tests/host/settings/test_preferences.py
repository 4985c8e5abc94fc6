"""Preference data are checked before Ray starts."""

import json
from pathlib import Path

import pytest

from fgrpo_plugin.host.settings.switch import complete
from tests.support.overrides import HAL


def test_a_bad_preference_row_ends_the_run_before_ray_unless_it_is_skipped(stock_config, inputs, tmp_path):
    file = tmp_path / "bad.jsonl"
    file.write_text(
        '{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt": "p", "chosen": "a", "rejected": "a"}\n'
    )
    config = stock_config(*inputs, HAL, f"+data.preference.files=[{file}]")
    with pytest.raises(ValueError, match=r"row 1: chosen and rejected are the same"):
        complete(config)
    small = ["+data.preference.batch_size=2", "trainer.n_gpus_per_node=1"]
    complete(stock_config(*inputs, HAL, f"+data.preference.files=[{file}]", "+data.preference.on_bad_row=skip", *small))


SMALL = ["+data.preference.batch_size=2", "trainer.n_gpus_per_node=1"]
PAIR = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}


def run(stock_config, inputs, tmp_path, rows, *more, name="prefs.jsonl"):
    file = tmp_path / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [f"+data.preference.files=[{file}]", f"+data.preference.cache_dir={tmp_path / 'cache'}"]
    config = stock_config(*inputs, HAL, *files, *SMALL, *more)
    complete(config)
    return config


def test_the_same_content_under_two_names_is_not_held_out(stock_config, inputs, tmp_path):
    for held_out, same in ((PAIR, True), ({**PAIR, "rejected": "4"}, False)):
        (tmp_path / "other.jsonl").write_text(json.dumps(held_out) + "\n")
        more = [f"+data.preference.val_files=[{tmp_path / 'other.jsonl'}]"]
        if same:
            with pytest.raises(
                ValueError, match=r"other\.jsonl has the content of .*prefs\.jsonl, which is trained on"
            ):
                run(stock_config, inputs, tmp_path, [PAIR], *more)
        else:
            run(stock_config, inputs, tmp_path, [PAIR], *more)


@pytest.mark.parametrize(
    ("rows", "more", "reason"),
    [
        ([PAIR, {**PAIR, "chosen": "[INST] 2"}], [], r"row 1: it holds '\[INST\]'.*on_templated=skip, or keep"),
        ([PAIR, {**PAIR, "chosen": "2" * 3000}], [], r"row 1: prompt of \d+ and response of 3001 tokens"),
        (
            [{"prompt": "p", "completion": "2" * (1 + 3000 * i), "label": i == 0} for i in range(2)],
            ["+data.preference.on_too_long=drop"],
            "desirable or undesirable rows alone are left",
        ),
        ([{**PAIR, "tools": ["t"]}], [], "row 0: the column 'tools' conditions the responses"),
    ],
)
def test_what_the_trainer_would_find_is_found_before_ray(stock_config, inputs, tmp_path, rows, more, reason):
    with pytest.raises(ValueError, match=reason):
        run(stock_config, inputs, tmp_path, rows, *more)


def test_the_launchers_rows_are_those_that_the_trainer_reads(stock_config, inputs, tmp_path, monkeypatch):
    from verl.utils.tokenizer import hf_tokenizer

    from fgrpo_plugin.host.settings.preferences import load_preference_rows
    from fgrpo_plugin.preference import loading

    config = run(stock_config, inputs, tmp_path, [PAIR, {**PAIR, "prompt": "1+2="}])
    monkeypatch.setattr(loading, "encode", None)  # would fail: nothing is tokenised again
    loaded = load_preference_rows(config, hf_tokenizer(config.actor_rollout_ref.model.path))
    assert len(loaded.rows) == 4 and loaded.rows[0].prompt_length < 64


def test_where_the_tokenizer_is_elsewhere_the_text_is_checked_and_the_rest_is_left_to_the_trainer(
    stock_config, inputs, tmp_path, capsys
):
    elsewhere = ["actor_rollout_ref.model.path=owner/nowhere"]
    run(stock_config, inputs, tmp_path, [PAIR], *elsewhere)
    assert "the tokenizer of owner/nowhere cannot be loaded here" in capsys.readouterr().out
    with pytest.raises(ValueError, match="row 0: a response is empty"):
        run(stock_config, inputs, tmp_path, [{**PAIR, "chosen": " "}], *elsewhere)


def test_the_runs_template_lengths_and_stop_tokens_are_taken(stock_config, inputs, tmp_path):
    from fgrpo_plugin.host.settings.preferences import load_preference_rows
    from fgrpo_plugin.quickstart.model import build_tokenizer

    tokenizer = build_tokenizer()
    stop = tokenizer.convert_tokens_to_ids("<|reserved_4|>")
    config = run(stock_config, inputs, tmp_path, [PAIR], "+data.apply_chat_template_kwargs.loud=true")
    folder = Path(config.actor_rollout_ref.model.path)
    tokenizer.chat_template = (
        tokenizer.chat_template.replace("<|im_end|>", "<|reserved_4|>") + "{% if loud %}!{% endif %}"
    )
    loaded = load_preference_rows(config, tokenizer)
    assert any("rollouts stop at" in line for line in loaded.lines) and any(
        "otherwise" in line for line in loaded.lines
    )
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [stop]}))
    loaded = load_preference_rows(config, tokenizer)
    assert loaded.rows[0].response_ids[-1] == stop and not any("rollouts stop" in line for line in loaded.lines)
    config.data.max_response_length = 1
    with pytest.raises(ValueError, match=r"at most .* and 1 fit"):
        load_preference_rows(config, tokenizer)
