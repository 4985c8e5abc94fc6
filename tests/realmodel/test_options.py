"""What is refused before anything is fetched, by its option's name."""

from pathlib import Path

import pytest

from fgrpo_plugin.quickstart.model import build_tokenizer
from fgrpo_plugin.realmodel.options import ARMS, RealModelError, RealModelOptions


@pytest.mark.parametrize(
    "given, words",
    [
        ({"algo": "ppo"}, "ALGO=ppo is not known; choose one of grpo, grpo_kl, f_grpo, released"),
        ({"algo": "grpo", "divergence": "pearson"}, "DIVERGENCE=pearson means nothing to ALGO=grpo"),
        ({"divergence": "person"}, "DIVERGENCE=person is not known; choose one of"),
        ({"divergence": "alpha"}, "DIVERGENCE=alpha is not known"),
        ({"steps": 0}, "STEPS=0 must lie between 1 and"),
        ({"learning_rate": 1.0}, r"--learning-rate=1.0 must lie in \[0, 1\)"),
        ({"seed": -1}, "SEED=-1 must lie between 0 and 2147483647"),
        ({"seed": 2**31}, "SEED=2147483648 must lie between 0 and 2147483647"),
        ({"folder": Path(__file__)}, "is a file; name a folder"),
        ({"data": (Path("/nowhere/at_all"),)}, "DATA=/nowhere/at_all does not exist"),
        ({"model": Path("/nowhere/at_all")}, "MODEL=/nowhere/at_all: there is no such folder"),
    ],
)
def test_a_bad_option_is_named_with_its_remedy(tmp_path, given, words):
    with pytest.raises(RealModelError, match=words):
        RealModelOptions(**{"folder": tmp_path, **given}).check()


@pytest.mark.parametrize("algo", ARMS)
def test_every_algorithm_is_taken(tmp_path, algo):
    RealModelOptions(folder=tmp_path / "new", algo=algo, learning_rate=0.0).check()


@pytest.fixture
def tokenizer_alone(tmp_path):
    """A model's folder whose weights are missing."""
    build_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path / "model"


def test_a_model_without_weights_or_with_some_of_them_is_refused_before_anything_is_sampled(tokenizer_alone):
    def refused(words):
        with pytest.raises(RealModelError, match=words):
            RealModelOptions(folder=tokenizer_alone.parent, model=tokenizer_alone).check()

    refused(r"MODEL=.*: holds no weights \(\.safetensors\); save the model with save_pretrained")
    index = tokenizer_alone / "model.safetensors.index.json"
    (tokenizer_alone / "model-1.safetensors").touch()
    index.write_text('{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safe')
    refused(r"MODEL=.*index\.json is cut off or none; copy the folder anew")
    index.write_text('{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}')
    refused(r"MODEL=.*of its weights model-2\.safetensors is missing; copy the folder anew")
    (tokenizer_alone / "model-2.safetensors").touch()
    RealModelOptions(folder=tokenizer_alone.parent, model=tokenizer_alone).check()
    for file in tokenizer_alone.glob("model*"):
        file.unlink()
    (tokenizer_alone / "pytorch_model.bin").touch()
    RealModelOptions(folder=tokenizer_alone.parent, model=tokenizer_alone).check()


def test_a_model_without_a_chat_template_is_refused_before_anything_is_sampled(tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(RealModelError, match=r"MODEL=.*has no chat template; set tokenizer\.chat_template"):
        RealModelOptions(folder=tmp_path, model=tmp_path / "model").check()
