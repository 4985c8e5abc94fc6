"""States on disk: kept bit for bit, of one model, and computed anew where a file is damaged."""

import json

import numpy as np
import pytest

from fgrpo_plugin.eval.kept_states import KeptStates, prompt_key

SETTINGS = {"weights": "a1", "dtype": "float32"}
KEYS = [prompt_key(ids) for ids in ([1, 2], [2, 1], [1, 2, 3])]
STATES = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)


def test_a_prompt_is_told_by_its_tokens():
    assert len({*KEYS, prompt_key([1, 2])}) == 3 and prompt_key((1, 2)) == KEYS[0]
    assert prompt_key([258]) != prompt_key([2, 1])  # not the bytes of small numbers


def test_what_is_added_is_there_in_the_next_run(tmp_path):
    kept = KeptStates(tmp_path / "new" / "states", SETTINGS)
    assert KEYS[0] not in kept
    kept.add(KEYS[:2], STATES[:2])
    assert KEYS[1] in kept and np.array_equal(kept[KEYS[1]], STATES[1])
    KeptStates(kept.folder, SETTINGS).add(KEYS[2:], STATES[2:])
    again = KeptStates(kept.folder, SETTINGS)
    assert all(np.array_equal(again[key], states) for key, states in zip(KEYS, STATES, strict=True))
    assert again[KEYS[0]].dtype == np.float32 and not again.damaged
    assert sorted(file.suffix for file in kept.folder.iterdir()) == [".json", ".safetensors", ".safetensors"]


def test_a_damaged_file_is_removed_and_its_prompts_are_missing(tmp_path):
    kept = KeptStates(tmp_path, SETTINGS)
    kept.add(KEYS[:1], STATES[:1])
    (file,) = tmp_path.glob("*.safetensors")
    kept.add(KEYS[1:], STATES[1:])
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    again = KeptStates(tmp_path, SETTINGS)
    assert again.damaged == [file] and not file.exists()
    assert KEYS[0] not in again and KEYS[1] in again and KEYS[2] in again


def test_states_of_another_model_are_refused_by_name(tmp_path):
    KeptStates(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match=r"made with other settings \(dtype float32, now bfloat16\); remove it, or"):
        KeptStates(tmp_path, SETTINGS | {"dtype": "bfloat16"})
    assert json.loads((tmp_path / "settings.json").read_text()) == SETTINGS


def test_states_without_settings_are_of_nobody_knows_which_model(tmp_path):
    KeptStates(tmp_path, SETTINGS).add(KEYS, STATES)
    (tmp_path / "settings.json").unlink()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"holds files without settings\.json; remove it, or name another folder"):
        KeptStates(tmp_path, SETTINGS | {"weights": "b2"})
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("text", ["", "words", "[1]"])
def test_a_spoilt_folder_is_one_sentence(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(ValueError, match=r"settings\.json is spoilt; remove .*, or name another folder"):
        KeptStates(tmp_path, SETTINGS)
