"""An adapter told apart, scaled and added as PEFT does it, but in float32 and rounded once."""

import json
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from fgrpo_plugin.export.lora import adapter_of, merge, read_adapter, split, write_adapter

SETTINGS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.up_proj": 5}},
}


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.up_proj = torch.nn.Linear(6, 4), torch.nn.Linear(4, 8, bias=False)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([Layer(), Layer()])


def adapted(**settings):
    """A model of PEFT's with an adapter that is not zero."""
    torch.manual_seed(0)
    settings = {"target_modules": ["q_proj", "up_proj"]} | settings
    model = get_peft_model(Model(), LoraConfig(r=3, lora_alpha=12, **settings))
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value)
    return model


@pytest.mark.parametrize("kind", SETTINGS)
def test_merging_is_pefts_own(kind):
    model = adapted(**SETTINGS[kind])
    base, weights = split({name: value.clone() for name, value in model.state_dict().items()})
    found = adapter_of(weights, {"r": 3, "lora_alpha": 12, **SETTINGS[kind]}, "here")
    merge(base, found, [], None, "here")
    expected = model.merge_and_unload().state_dict()
    assert base.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(base[name], value, atol=1e-6, rtol=1e-6)


def test_low_precision_is_rounded_once():
    base = {"q_proj.weight": torch.randn(8, 8).bfloat16()}
    a, b = torch.randn(2, 8).bfloat16(), 1e-2 * torch.randn(8, 2).bfloat16()
    adapter = adapter_of({"q_proj.lora_A.weight": a, "q_proj.lora_B.weight": b}, {"r": 2, "lora_alpha": 3}, "here")
    exact = base["q_proj.weight"].double() + 1.5 * b.double() @ a.double()
    whole = dict(base)
    merge(base, adapter, [], None, "here")
    assert base["q_proj.weight"].dtype == torch.bfloat16
    nearest = exact.to(torch.bfloat16)
    assert (base["q_proj.weight"] != nearest).float().mean() < 0.05  # a tie may fall to either side
    merge(whole, adapter, [], torch.float32, "here")
    torch.testing.assert_close(whole["q_proj.weight"].double(), exact, atol=1e-6, rtol=1e-6)


def test_a_weight_that_is_held_the_other_way_round_is_added_to_so():
    """GPT-2's Conv1D: also where it is square, and a wrong guess would not show."""
    base = {"c.weight": torch.randn(4, 4)}
    a, b = torch.randn(2, 4), torch.randn(4, 2)
    adapter = adapter_of({"c.lora_A.weight": a, "c.lora_B.weight": b}, {"r": 2, "lora_alpha": 2}, "here")
    expected = base["c.weight"] + (b @ a).T
    merge(base, adapter, ["c"], None, "here")
    torch.testing.assert_close(base["c.weight"], expected)


@pytest.mark.parametrize("modules", ["all", "some"])
def test_what_is_written_is_read_by_peft_and_here(tmp_path, modules):
    targets = ["q_proj", "up_proj"] if modules == "all" else ["layers.1.q_proj", "layers.1.up_proj"]
    model = adapted(**SETTINGS["patterns"], target_modules=targets)
    _, weights = split(dict(model.state_dict()))
    found = adapter_of(weights, {"r": 3, "lora_alpha": 12, **SETTINGS["patterns"]}, "here")
    linear = [name for name, module in Model().named_modules() if isinstance(module, torch.nn.Linear)]
    write_adapter(found, tmp_path, base_model=None, linear=linear, dtype=None)
    again, settings = read_adapter(tmp_path)
    assert adapter_of(again, settings, "here").scale("layers.1.up_proj") == pytest.approx(5 / 3)
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    assert settings["target_modules"] == targets
    config = LoraConfig.from_pretrained(tmp_path)
    config.inference_mode, config.task_type = False, None  # of which the little model has no methods
    fresh = get_peft_model(Model(), config).state_dict()
    assert {name for name in fresh if "lora_" in name} == {name for name in model.state_dict() if "lora_" in name}


def test_an_adapter_of_a_run_that_diverged_is_refused(tmp_path):
    weights = {"q.lora_A.weight": torch.full((2, 4), float("nan")), "q.lora_B.weight": torch.ones(4, 2)}
    found = adapter_of(weights, {"r": 2, "lora_alpha": 4}, "here")
    with pytest.raises(ValueError, match=r"q\.lora_A\.weight has entries that are no numbers: the run diverged"):
        write_adapter(found, tmp_path, base_model=None, linear=["q"], dtype=None)


PAIR = {"q.lora_A.weight": torch.ones(2, 4), "q.lora_B.weight": torch.ones(4, 2)}
KNOWN = {"r": 2, "lora_alpha": 4}


@pytest.mark.parametrize(
    "weights, settings, sentence",
    [
        ({"q.lora_A.weight": PAIR["q.lora_A.weight"]}, KNOWN, "q has one of LoRA's two matrices alone"),
        (PAIR, {"r": 2}, "rank and alpha are not there, so that it cannot be scaled"),
        (PAIR, {"r": 4, "lora_alpha": 4}, "q has rank 2 where 4 is recorded"),
        (PAIR, {**KNOWN, "use_dora": True}, "DoRA is not known"),
    ],
)
def test_an_adapter_that_would_be_guessed_is_refused(weights, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        adapter_of(weights, settings, "here")


@pytest.mark.parametrize(
    "name", ["q.lora_magnitude_vector.default", "e.lora_embedding_A.default", "h.modules_to_save.d"]
)
def test_other_kinds_of_adapters_are_refused(name):
    with pytest.raises(ValueError, match="fgrpo export knows plain LoRA on linear layers, not this"):
        split({f"base_model.model.{name}": torch.ones(1)})


@pytest.mark.parametrize("base", [{}, {"q.weight": torch.ones(3, 4)}])
def test_another_base_model_is_refused(base):
    adapter = adapter_of(PAIR, KNOWN, "here")
    with pytest.raises(ValueError, match=r"there: q is .* in the adapter, .*; name that one with --base-model\.$"):
        merge(base, adapter, [], None, "there")


def test_half_an_adapters_folder_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(KNOWN))
    with pytest.raises(ValueError, match=r"is half-written \(.*; choose an earlier step with --step\.$"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="is half-written"):
        read_adapter(tmp_path)


def test_megatron_bridges_adapter_is_merged_into_the_base_model(runs, tmp_path):
    """In the layout of verl's Megatron engine, with an adapter that FSDP trained: Bridge itself is not here."""
    from safetensors.torch import load_file

    from fgrpo_plugin.export.exporting import export_run

    quiet = SimpleNamespace(say=lambda line: None)
    actor = tmp_path / "run" / "global_step_7" / "actor"
    folder = actor / "model" / "huggingface"
    folder.parent.mkdir(parents=True)
    export_run(runs.folder / "full", folder, say=quiet.say)
    (folder / "model.safetensors").unlink()
    export_run(runs.folder / "lora", folder / "adapter", adapter=True, say=quiet.say)
    (actor / "ckpt_contents.json").write_text('{"role": "actor"}')
    given = {"dtype": "float32", "say": quiet.say}
    with pytest.raises(ValueError, match="holds LoRA's adapter without the model"):
        export_run(actor, tmp_path / "none", **given)
    found = export_run(actor, tmp_path / "merged", base_model=str(runs.model), **given)
    expected = export_run(runs.folder / "lora", tmp_path / "expected", **given)
    one, two = (load_file(place / "model.safetensors") for place in (found, expected))
    assert one.keys() == two.keys() and all(torch.allclose(one[name], two[name], atol=1e-7) for name in one)
