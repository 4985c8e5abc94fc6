"""The tiny model and its tokenizer: what verl and vLLM need of them, and what the warm-up promises."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fgrpo_plugin.quickstart import model as quickstart_model
from fgrpo_plugin.quickstart.model import Example, build_model, build_tokenizer, save_model, success_rates, warm_up


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(quickstart_model, "BATCH_SIZE", 64)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_a_token_is_a_byte(tokenizer):
    text = "12+34=46\n ä€ <x>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text
    assert len(tokenizer.encode("\n", add_special_tokens=False)) == 1


def test_special_tokens_are_one_token_and_vanish_from_the_decoded_answer(tokenizer):
    ids = tokenizer.encode("46<|im_end|>", add_special_tokens=False)
    assert ids == [*b"46", tokenizer.eos_token_id]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "46"
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert len(tokenizer) % 8 == 0


def test_the_prompt_is_short_and_a_conversation_only_appends(tokenizer):
    ask = [{"role": "user", "content": "12+34="}]
    prompt = tokenizer.apply_chat_template(ask, tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>12+34="
    longer = [*ask, {"role": "assistant", "content": "46"}, {"role": "user", "content": "1+1="}]
    assert tokenizer.apply_chat_template(longer, tokenize=False).startswith(prompt + "46<|im_end|>\n")


def test_the_hosts_qwen_token_builder_accepts_the_tokenizer(tokenizer):
    from verl.utils.tokenizer.continuous_token import QwenContinuousTokenBuilder

    builder = QwenContinuousTokenBuilder(tokenizer)
    ids = builder.build_initial_tokens([{"role": "user", "content": "12+34="}])
    assert list(ids) == tokenizer.encode("<|im_start|>12+34=", add_special_tokens=False)


def test_the_saved_folder_loads_as_an_ordinary_hugging_face_model(tokenizer, tmp_path):
    model = build_model(tokenizer, seed=0)
    folder = save_model(model, tokenizer, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    again = AutoTokenizer.from_pretrained(folder)
    assert loaded.config.architectures == ["Qwen2ForCausalLM"]
    assert 3e5 < sum(p.numel() for p in loaded.parameters()) < 4e5
    assert (loaded.config.eos_token_id, loaded.config.pad_token_id) == (again.eos_token_id, again.pad_token_id)
    assert again.chat_template == tokenizer.chat_template
    ids = torch.tensor([again.encode("<|im_start|>12+34=", add_special_tokens=False)])
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


def test_the_model_depends_on_the_seed_and_leaves_the_global_generator_alone(tokenizer):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first, same, other = (build_model(tokenizer, seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_success_rates_agree_with_generation(tokenizer):
    """The teacher-forced figures against what they stand for: sampling and greedy decoding."""
    rng = random.Random(0)
    model = build_model(tokenizer, seed=0)
    examples = [Example(f"{a}+1=", str(a + 1)) for a in range(4)]
    warm_up(
        model,
        tokenizer,
        examples,
        seed=0,
        wrong_answer=lambda answer, _: rng.choice([a for a in "1234" if a != answer]),
        max_steps=40,
    )
    sampled, greedy = success_rates(model, tokenizer, examples)

    draws = 600
    prompts = tokenizer(["<|im_start|>" + e.prompt for e in examples], return_tensors="pt", add_special_tokens=False)

    def answers(**settings: object) -> list[str]:
        generated = model.generate(**prompts, max_new_tokens=4, **settings)
        return tokenizer.batch_decode(generated[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)

    torch.manual_seed(0)
    drawn = answers(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_return_sequences=draws)
    hits = [drawn[i] == examples[i // draws].answer for i in range(len(drawn))]
    standard_error = (sampled * (1 - sampled) / len(hits)) ** 0.5
    assert 0.05 < sampled < 0.95
    assert sum(hits) / len(hits) == pytest.approx(sampled, abs=4 * standard_error)
    best = answers(do_sample=False)
    assert greedy == sum(b == e.answer for b, e in zip(best, examples, strict=True)) / len(examples)


def _short_warm_up(tokenizer, seed, **settings):
    model = build_model(tokenizer, seed)
    examples = [Example(f"{a}+{b}=", str(a + b)) for a in range(3) for b in range(3)]
    steps = []
    result = warm_up(
        model,
        tokenizer,
        examples,
        seed=seed,
        wrong_answer=lambda answer, rng: rng.choice([c for c in "0123456789" if c != answer]),
        on_step=lambda step, success: steps.append((step, success)),
        **settings,
    )
    return model, examples, steps, result


def test_warm_up_stops_at_the_target_below_the_ceiling_of_half_wrong_labels(tokenizer):
    model, examples, steps, result = _short_warm_up(tokenizer, seed=0, target_success=0.3, max_steps=200)
    assert result.reached_target and result.steps < 200
    assert result.steps % quickstart_model.PROBE_EVERY == 0
    assert 0.3 <= result.sampled_success <= 0.6
    assert result.sampled_success == pytest.approx(success_rates(model, tokenizer, examples)[0])
    assert steps[-1] == (result.steps, result.sampled_success)
    assert not model.training


def test_warm_up_is_reproducible_depends_on_the_seed_and_says_when_it_missed(tokenizer):
    first, same, other = (_short_warm_up(tokenizer, seed, max_steps=5, target_success=0.99) for seed in (0, 0, 1))
    assert not first[3].reached_target and first[3].steps == 5
    assert torch.equal(first[0].lm_head.weight, same[0].lm_head.weight)
    assert not torch.equal(first[0].lm_head.weight, other[0].lm_head.weight)


def test_warm_up_obeys_its_time_limit(tokenizer):
    assert _short_warm_up(tokenizer, seed=0, max_seconds=0.0)[3].steps == 0
