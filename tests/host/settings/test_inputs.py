"""What a run names - data files, a model folder, a reward - is looked at before anything starts."""

import pytest

from fgrpo_plugin.host.settings.inputs import (
    TOKENIZER_FILES,
    check_data_file,
    check_model,
    is_elsewhere,
    load_tokenizer,
)
from fgrpo_plugin.host.settings.switch import complete
from fgrpo_plugin.quickstart.model import build_tokenizer
from tests.support.overrides import SWITCH


@pytest.mark.parametrize("text", ['{"prompt": []}\n{"prompt": []}\n', '[\n {"prompt": []}\n]'])
def test_json_in_lines_and_as_a_list_is_read(tmp_path, text):
    file = tmp_path / "rows.json"
    file.write_text(text)
    check_data_file(file, ["prompt"], "DATA")
    with pytest.raises(ValueError, match="column answer is missing"):
        check_data_file(file, ["answer"], "DATA")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no rows"):
        check_data_file(tmp_path / "empty.jsonl", ["prompt"], "DATA")


@pytest.mark.parametrize(
    "name, text, words",
    [
        (
            "none.jsonl",
            None,
            r"DATA=.*none.jsonl: there is no such file; give the path of a .parquet or .jsonl file\.$",
        ),
        ("a.csv", "x", r"DATA=.*a.csv: cannot be read \(the ending '.csv' is none of .parquet, .json, .jsonl\)\.$"),
        ("a.jsonl", "1\n", r"DATA=.*a.jsonl: cannot be read \(its first row is not an object\)\.$"),
        (
            "a.jsonl",
            '{"text": 1}',
            r"column prompt is missing \(found: text\); rename one or name it in data.prompt_key",
        ),
        ("a.jsonl", '{"prompt": 1}', r"column answer is missing \(found: prompt\); rename one, or add it\.$"),
    ],
)
def test_a_data_file_that_cannot_be_used_is_refused_in_one_sentence(tmp_path, name, text, words):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        check_data_file(tmp_path / name, ["prompt", "answer"] if "answer" in words else ["prompt"], "DATA")


@pytest.mark.parametrize("path", ["hdfs://cluster/a.parquet", "/nowhere/part-*.parquet", "/nowhere/part-[01].parquet"])
def test_what_the_host_fetches_or_expands_is_left_to_it(path):
    check_data_file(path, ["prompt"], "DATA")
    assert is_elsewhere(path) and not is_elsewhere("/data/rows.parquet")


def test_a_model_folder_needs_a_configuration_and_a_tokenizer(tmp_path):
    with pytest.raises(ValueError, match=r"MODEL=~/model: verl does not expand '~' there"):
        check_model("~/model", "MODEL")
    with pytest.raises(ValueError, match="there is no such folder"):
        check_model(str(tmp_path / "none"), "MODEL")
    with pytest.raises(ValueError, match=r"config.json is missing"):
        check_model(str(tmp_path), "MODEL")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="the model has no tokenizer"):
        check_model(str(tmp_path), "MODEL")
    check_model(str(tmp_path), "MODEL", tokenizer=False)
    (tmp_path / "tokenizer.json").write_text("{}")
    check_model(str(tmp_path), "MODEL")
    check_model("owner/name", "MODEL")  # of a hub: left to verl


def test_a_tokenizer_is_loaded_or_refused_in_one_sentence(tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path / "whole")
    assert load_tokenizer(tmp_path / "whole", "MODEL")("1+1=")["input_ids"] == tokenizer("1+1=")["input_ids"]
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"MODEL=.*bare: its tokenizer has no chat template; set .* and save it\.$"):
        load_tokenizer(tmp_path / "bare", "MODEL")
    assert load_tokenizer(tmp_path / "bare", "MODEL", has_template=True)("1+1=")["input_ids"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"MODEL=.*empty: its tokenizer cannot be loaded \(") as error:
        load_tokenizer(tmp_path / "empty", "MODEL")
    assert "\n" not in str(error.value)


def test_a_model_without_tokenizer_is_refused(stock_config, inputs, tmp_path):
    for name in TOKENIZER_FILES:
        (tmp_path / "model" / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match="no tokenizer"):
        complete(stock_config(*inputs, SWITCH))


def test_remote_files_patterns_and_hub_names_are_left_to_the_host(stock_config, inputs):
    files = [
        "data.train_files=['hdfs://cluster/rows.parquet','part-*.parquet']",
        "data.val_files=s3://bucket/rows.parquet",
    ]
    complete(stock_config(*inputs[2:], SWITCH, *files, "actor_rollout_ref.model.path=Qwen/Qwen2.5-Math-1.5B"))
