"""States of last tokens: of a batch as of one prompt alone, kept and continued, and refused where not finite."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, MambaConfig, Qwen2Config

from fgrpo_plugin.eval import hidden_states as module
from fgrpo_plugin.eval.hidden_states import hidden_states, kept_states, rendered
from fgrpo_plugin.eval.kept_states import KeptStates
from fgrpo_plugin.quickstart.model import build_model, build_tokenizer, save_model

QUESTIONS = ["How do I bake bread?", "Why?", "How do I cheat in a board game that my sister always wins?", "Who, me?"]
CHATS = [[{"role": "user", "content": question}] for question in QUESTIONS]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    tokenizer = build_tokenizer()
    return save_model(build_model(tokenizer, 0), tokenizer, tmp_path_factory.mktemp("tiny") / "tiny")


SMALL = {"vocab_size": 300, "hidden_size": 32, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": None}
QWEN2 = Qwen2Config(
    **SMALL,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)
KINDS = {
    "relative positions": QWEN2,
    "absolute positions": GPT2Config(
        vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=1
    ),
    "recurrent": MambaConfig(**SMALL, num_hidden_layers=2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_has_the_states_of_one_prompt_at_a_time(kind, model, tmp_path):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(KINDS[kind]).save_pretrained(tmp_path / "model")
    prompts = rendered(model, CHATS)
    found = hidden_states(tmp_path / "model", prompts, kept_states(tmp_path / "model", tmp_path / "s", None))
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    for ids, states in zip(prompts, found, strict=True):
        with torch.no_grad():
            expected = alone(torch.tensor([ids]), output_hidden_states=True).hidden_states
        assert len(expected) == len(states) == KINDS[kind].num_hidden_layers + 1
        for layer, given in zip(states, expected, strict=True):
            assert np.abs(layer - given[0, -1].numpy()).max() < 1e-5
    assert len({state.tobytes() for state in found[:, -1]}) == 4


def test_layers_are_what_enters_and_leaves_the_models_blocks(model, tmp_path):
    prompts = rendered(model, CHATS)
    found = hidden_states(model, prompts, kept_states(model, tmp_path / "s", "float32"), batch_size=3)
    assert found.shape == (4, 3, 128) and found.dtype == np.float32
    alone, seen = AutoModelForCausalLM.from_pretrained(model).eval(), []
    for part in (alone.model.embed_tokens, alone.model.layers[0], alone.model.norm):
        part.register_forward_hook(lambda _, __, given: seen.append(given[0] if isinstance(given, tuple) else given))
    for ids, states in zip(prompts, found, strict=True):
        seen.clear()
        with torch.no_grad():
            alone(torch.tensor([ids]))
        for layer, given in zip(states, seen, strict=True):
            assert np.abs(layer - given[0, -1].numpy()).max() < 1e-5


def test_prompts_are_rendered_as_a_server_would_with_the_beginning_of_an_answer(model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert [tokenizer.decode(ids) for ids in rendered(model, CHATS)] == [f"<|im_start|>{q}" for q in QUESTIONS]
    (tmp_path / "t.jinja").write_text("{{ messages[0].content }}{% if add_generation_prompt %}<|im_start|>{% endif %}")
    assert tokenizer.decode(rendered(model, CHATS, tmp_path / "t.jinja")[1]) == "Why?<|im_start|>"


def test_prompts_that_cannot_be_read_are_refused_before_weights_are_loaded(model, tmp_path):
    (tmp_path / "t.jinja").write_text("{{ raise_exception('no questions, please') }}")
    with pytest.raises(ValueError, match=r"MODEL .*tiny: its chat template refuses 'How do I bake bread\?' \(no quest"):
        rendered(model, CHATS, tmp_path / "t.jinja")
    (tmp_path / "t.jinja").write_text("{{ messages + 1 }}")
    with pytest.raises(
        ValueError, match=r"MODEL .*tiny: its chat template refuses 'How do I bake bread\?' \(can only c"
    ):
        rendered(model, CHATS, tmp_path / "t.jinja")
    (tmp_path / "t.jinja").write_text("{{ messages[0].content if 'bread' in messages[0].content }}")
    with pytest.raises(ValueError, match=r"its chat template makes nothing of 'Why\?'; give it another"):
        rendered(model, CHATS, tmp_path / "t.jinja")
    (tmp_path / "t.jinja").write_text("{{ raise_exception('no questions, please') }}")
    long = [*CHATS, [{"role": "user", "content": "a\n" + "b" * 700}]]
    with pytest.raises(ValueError, match=r"its window is 512 tokens and 'a b{55}\.\.\.' takes 703; leave that prompt"):
        rendered(model, long)
    plain = tmp_path / "plain"
    shutil.copytree(model, plain)
    for file in plain.glob("*.jinja"):
        file.unlink()
    config = json.loads((plain / "tokenizer_config.json").read_text())
    (plain / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "chat_template"}))
    with pytest.raises(ValueError, match="its tokenizer has no chat template"):
        rendered(plain, CHATS)
    (tmp_path / "t.jinja").write_text("{{ messages[0].content }}")
    assert len(rendered(plain, CHATS, tmp_path / "t.jinja")[1]) == 4


def test_a_token_that_the_model_does_not_have_is_refused(model, tmp_path):
    with pytest.raises(
        ValueError, match=r"MODEL .*tiny: its tokenizer gives token 264 and the model has 264; save the"
    ):
        hidden_states(model, [[1, 263], [1, 264]], kept_states(model, tmp_path / "s", None))
    assert not list((tmp_path / "s").glob("*.safetensors"))
    assert hidden_states(model, [[1, 263]], kept_states(model, tmp_path / "s", None)).shape[0] == 1


def test_what_is_kept_is_not_computed_again(model, tmp_path, monkeypatch):
    prompts, told = rendered(model, CHATS), []
    first = hidden_states(
        model,
        [*prompts[:3], prompts[0]],
        kept_states(model, tmp_path / "s", None),
        batch_size=2,
        on_progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(0, 3), (2, 3), (3, 3)] and np.array_equal(first[0], first[3])
    asked, told = [], []
    real = module._last_states
    monkeypatch.setattr(module, "_last_states", lambda given, ids: asked.append(ids) or real(given, ids))
    again = hidden_states(
        model,
        prompts,
        kept_states(model, tmp_path / "s", None),
        on_progress=lambda done, total: told.append((done, total)),
    )
    assert asked == [[prompts[3]]] and told == [(3, 4), (4, 4)] and np.array_equal(again[:3], first[:3])
    monkeypatch.setattr(module, "_load", None)
    assert np.array_equal(hidden_states(model, prompts, kept_states(model, tmp_path / "s", None)), again)


def test_what_was_computed_before_a_failure_is_kept(model, tmp_path, monkeypatch):
    prompts, real = rendered(model, CHATS), module._last_states

    def fails(given, ids):
        if len(ids[0]) < 10:
            raise torch.OutOfMemoryError("no memory")
        return real(given, ids)

    monkeypatch.setattr(module, "_last_states", fails)
    with pytest.raises(ValueError, match="the GPU has too little memory for batches of 1; lower --batch-size"):
        hidden_states(model, prompts, kept_states(model, tmp_path / "s", None), batch_size=1)
    assert len(list((tmp_path / "s").glob("*.safetensors"))) == 2  # the longest first


def test_the_dtype_is_that_of_the_weights_and_states_are_told_apart_by_it(model, tmp_path):
    prompts = rendered(model, CHATS)
    exact = hidden_states(model, prompts, kept_states(model, tmp_path / "s", None))
    rough = hidden_states(model, prompts, kept_states(model, tmp_path / "rough", "bfloat16"))
    assert 1e-3 < np.abs(exact - rough).max() < 0.5
    assert np.array_equal(rough, torch.from_numpy(rough).bfloat16().float().numpy())
    with pytest.raises(ValueError, match=r"other settings \(dtype float32, now bfloat16\)"):
        kept_states(model, tmp_path / "s", "bfloat16")
    assert kept_states(model, tmp_path / "s", "float32").settings["device"] == "cpu"
    other = save_model(build_model(build_tokenizer(), 1), build_tokenizer(), tmp_path / "other")
    with pytest.raises(ValueError, match=r"other settings \(weights \w+, now \w+\)"):
        kept_states(other, tmp_path / "s", None)


def test_on_a_gpu_weights_are_as_saved_unless_a_dtype_is_given(model, tmp_path, monkeypatch):
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    prompts = rendered(model, CHATS)
    kept = KeptStates(tmp_path / "s", {"dtype": "as saved"})
    assert np.array_equal(
        hidden_states(tmp_path / "half", prompts, kept),
        hidden_states(tmp_path / "half", prompts, kept_states(tmp_path / "half", tmp_path / "t", "bfloat16")),
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = [kept_states(model, tmp_path / str(dtype), dtype).settings for dtype in (None, "float32")]
    assert [(one["dtype"], one["device"]) for one in found] == [("as saved", "cuda"), ("float32", "cuda")]


def test_states_that_are_not_finite_are_named_by_their_layer_and_not_kept(model, tmp_path):
    shutil.copytree(model, tmp_path / "nan")
    weights = load_file(tmp_path / "nan" / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"][5, 7] = torch.nan
    save_file(weights, tmp_path / "nan" / "model.safetensors", metadata={"format": "pt"})
    kept = kept_states(tmp_path / "nan", tmp_path / "s", None)
    with pytest.raises(
        ValueError, match=r"MODEL .*nan: its hidden states are not finite from layer 1 on \(dtype float32\); "
    ):
        hidden_states(tmp_path / "nan", rendered(model, CHATS), kept)
    assert not list((tmp_path / "s").glob("*.safetensors"))


def test_a_model_that_cannot_be_loaded_is_one_sentence(model, tmp_path):
    shutil.copytree(model, tmp_path / "none")
    (tmp_path / "none" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"MODEL=.*none cannot be loaded \(") as error:
        hidden_states(tmp_path / "none", rendered(model, CHATS), kept_states(tmp_path / "none", tmp_path / "s", None))
    assert "\n" not in str(error.value)
