"""The warmed-up model that comes with the package: it is what its header says, and made by the warm-up that is here."""

import dataclasses
import inspect
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fgrpo_plugin.quickstart import hybrid, task, warm_model
from fgrpo_plugin.quickstart import model as tiny
from fgrpo_plugin.quickstart.model import WarmUpResult, build_model, build_tokenizer, success_rates
from fgrpo_plugin.quickstart.options import QuickstartError
from fgrpo_plugin.quickstart.warm_model import FILE, SEED, code_shape, fingerprint, packaged, read

SOURCE = inspect.getsource(tiny)
WITHIN = 0.02
# Of the greedy accuracy where torch computes with other instructions. The warm-up ends at a sampled success, which is
# therefore the same; how often the likeliest response is right was 0.887 with AVX512 and 0.922 with AVX2.
WITHIN_ON_ANOTHER_CPU = 0.05


@pytest.fixture
def a_file(tmp_path):
    """A model that was not warmed up, written as the package's is."""
    tokenizer = build_tokenizer()
    file = tmp_path / "model.safetensors"
    model = build_model(tokenizer, SEED + 1)
    warm_model.write(model, tokenizer, WarmUpResult(7, 1.0, 0.25, False), SEED, file)
    return file, model


def test_the_packages_model_is_right_as_often_as_its_header_says():
    """By generation, and by the reward that the quick start's validation uses."""
    model, tokenizer = packaged()
    _, made = read()
    pairs = task.heldout_sample()
    asked = [[{"role": "user", "content": pair.prompt}] for pair in pairs]
    prompts = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    generated = model.generate(**prompts, max_new_tokens=8, do_sample=False)
    responses = tokenizer.batch_decode(generated[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)
    right = [task.compute_score("", text, pair.answer) for text, pair in zip(responses, pairs, strict=True)]
    assert len(right) == 256
    assert sum(right) / len(right) == pytest.approx(made.heldout_greedy, abs=WITHIN)
    sampled, greedy = success_rates(model, tokenizer, warm_model.heldout_examples())
    assert (sampled, greedy) == pytest.approx((made.heldout_sampled, made.heldout_greedy), abs=WITHIN)
    assert 0.7 < made.heldout_greedy < 0.95 and 0.3 < made.sampled_success < 0.4  # something is left to learn


def test_the_packages_model_is_small_of_the_default_seed_and_of_this_warm_up():
    weights, made = read()
    assert FILE.stat().st_size < 2_000_000
    assert {values.dtype for values in weights.values()} == {torch.float32}
    assert made.seed == SEED and made.command == warm_model.COMMAND
    assert made.fingerprint == fingerprint(), f"the warm-up has changed: run {warm_model.COMMAND}"


@pytest.mark.long
def test_made_again_it_is_right_as_often():
    _, made = read()
    model, tokenizer, result = warm_model.make(SEED)
    rates = success_rates(model, tokenizer, warm_model.heldout_examples())
    assert result.reached_target
    found = (result.sampled_success, rates[0])
    assert found == pytest.approx((made.sampled_success, made.heldout_sampled), abs=WITHIN)
    same_cpu = torch.backends.cpu.get_cpu_capability() == made.cpu
    assert rates[1] == pytest.approx(made.heldout_greedy, abs=WITHIN if same_cpu else WITHIN_ON_ANOTHER_CPU)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("WRONG_SHARE = 0.5", "WRONG_SHARE = 0.4"),
        ("hidden_size=128", "hidden_size=64"),
        ("max_steps: int = 600", "max_steps: int = 500"),
        ("clip_grad_norm_(model.parameters(), 1.0)", "clip_grad_norm_(model.parameters(), 0.5)"),
        ("success >= target_success:", "success > target_success:"),
        ('END = "<|endoftext|>", "<|im_start|>"', 'END = "<|endoftext|>", "<|im_begin|>"'),
    ],
)
def test_another_warm_up_has_another_fingerprint(monkeypatch, old, new):
    assert SOURCE.count(old) == 1
    expected = fingerprint()
    monkeypatch.setattr(inspect, "getsource", lambda module: SOURCE.replace(old, new))
    assert fingerprint() != expected


def test_comments_layout_and_docstrings_are_not_in_the_fingerprint(monkeypatch):
    expected = fingerprint()
    other = SOURCE.replace("# Half of the labels are wrong", "# Fifty per cent are wrong")
    other = other.replace("Supervise until a response", "Train until a response").replace("step += 1", "step  +=  1")
    assert sum(a != b for a, b in zip(SOURCE.splitlines(), other.splitlines(), strict=True)) == 3
    monkeypatch.setattr(inspect, "getsource", lambda module: other)
    assert fingerprint() == expected


def test_the_data_and_the_seed_are_in_the_fingerprint(monkeypatch):
    train, held_out = task.split_pairs()
    found = {fingerprint(), fingerprint(SEED + 1)}
    with monkeypatch.context() as patched:
        patched.setattr(task, "split_pairs", lambda: (train[::-1], held_out))
        found.add(fingerprint())
    with monkeypatch.context() as patched:
        patched.setattr(task, "wrong_answer", lambda answer, rng: str(rng.choice(task.OPERANDS)))
        found.add(fingerprint())
    assert len(found) == 4


def test_the_shape_of_code_tells_values_and_names_apart():
    assert code_shape("a = 1\n'''of a'''") == code_shape("# one\na = (1)")
    assert (
        len({json.dumps(code_shape(text)) for text in ("a = 1", "a = '1'", "b = 1", "a = -1", "f(a)", "f('a')")}) == 6
    )


def test_what_is_written_is_read_and_becomes_the_model(a_file):
    file, model = a_file
    _, made = read(file)
    assert (made.steps, made.sampled_success, made.seed) == (7, 0.25, SEED)
    assert (made.torch, made.cpu) == (torch.__version__, torch.backends.cpu.get_cpu_capability())
    loaded, tokenizer = packaged(file)
    ids = tokenizer("<|im_start|>12+34=", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
    assert not loaded.training


def _changed_weight(file):
    weights = load_file(file)
    _, made = read(file)
    weights["model.norm.weight"][3] += 1e-6
    save_file(weights, file, {"warm_up": json.dumps(dataclasses.asdict(made))})


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "header"),
        (lambda file: file.write_bytes(b""), "header"),
        (lambda file: file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "header"),
        (lambda file: save_file(load_file(file), file), "has no account of its warm-up"),
        (lambda file: save_file(load_file(file), file, {"warm_up": "{"}), "has no account of its warm-up"),
        (lambda file: save_file(load_file(file), file, {"warm_up": '{"seed": 0}'}), "has no account of its warm-up"),
        (_changed_weight, "its weights are not those that were written"),
        (lambda file: file.unlink(), "No such file"),
    ],
)
def test_a_damaged_file_is_named(a_file, damage, reason):
    file, _ = a_file
    damage(file)
    with pytest.raises(QuickstartError) as error:
        packaged(file)
    text = str(error.value)
    assert text.startswith(f"{file}: ") and reason in text and "--warm-up" in text and "\n" not in text


def test_a_model_of_another_warm_up_is_not_taken(a_file, monkeypatch):
    monkeypatch.setattr(warm_model, "fingerprint", lambda seed=SEED: "another")
    assert packaged(a_file[0]) is None


@pytest.mark.parametrize(
    ("for_hybrid", "wrong_answer", "target"),
    [(False, task.wrong_answer, None), (True, hybrid.wrong_answer, hybrid.WARM_UP_SUCCESS)],
)
def test_each_task_has_its_warm_up(monkeypatch, for_hybrid, wrong_answer, target):
    asked = {}

    def remembered(model, tokenizer, examples, **settings):
        asked.update(settings, examples=examples)
        return WarmUpResult(1, 0.0, 0.0, False)

    monkeypatch.setattr(warm_model, "warm_up", remembered)
    model, _, _ = warm_model.make(3, for_hybrid=for_hybrid)
    assert asked["wrong_answer"] is wrong_answer and asked.get("target_success") == target and asked["seed"] == 3
    assert [example.answer for example in asked["examples"]] == [pair.answer for pair in task.split_pairs()[0]]
    assert torch.equal(model.lm_head.weight, build_model(build_tokenizer(), 3).lm_head.weight)


def test_the_command_writes_the_packages_file(tmp_path, monkeypatch, capsys):
    tokenizer = build_tokenizer()
    made = (build_model(tokenizer, 5), tokenizer, WarmUpResult(9, 1.0, 0.5, True))
    monkeypatch.setattr(warm_model, "make", lambda seed, on_step: made)
    monkeypatch.setattr(warm_model, "FILE", tmp_path / "made.safetensors")
    warm_model.main()
    _, header = read(tmp_path / "made.safetensors")
    assert header.steps == 9 and json.loads(capsys.readouterr().out.strip()) == dataclasses.asdict(header)
