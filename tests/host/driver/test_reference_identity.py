"""Whatever the reference depends on changes the cache's key, one setting and one file at a time."""

import json
from importlib.metadata import version

import pytest
from omegaconf import OmegaConf

from fgrpo_plugin.host.driver.reference_identity import NEUTRAL, reference_dtype, reference_engine, reference_identity

SECTIONS = {"dp": "fsdp_config", "megatron": "megatron", "veomni": "veomni"}


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"rope_theta": 10000}')
    (folder / "model.safetensors").write_text("weights")
    return folder


@pytest.fixture
def composed(stock_config, model):
    def compose(engine="dp", *overrides):
        config = stock_config(
            f"model_engine={engine}",
            "algorithm.adv_estimator=f_hal",
            f"actor_rollout_ref.model.path={model}",
            *overrides,
        )
        OmegaConf.set_struct(config, False)
        return config

    return compose


@pytest.fixture
def key(tmp_path):
    return lambda config: json.dumps(reference_identity(config, tmp_path / "hashes.json"), sort_keys=True)


def changed(config, name, value):
    other = config.copy()
    OmegaConf.update(other, name, value, force_add=True)
    return other


@pytest.mark.parametrize("engine", SECTIONS)
def test_every_setting_of_model_and_engine_changes_the_key_but_the_neutral_ones(composed, key, engine):
    config = composed(engine)
    before = key(config)
    kept = set()
    for section in ("actor_rollout_ref.model", f"actor_rollout_ref.ref.{SECTIONS[engine]}"):
        for name in OmegaConf.select(config, section):
            # Files, and the adapter, whose reference is the actor: below.
            if name not in (
                "path",
                "hf_config_path",
                "external_lib",
                "lora_rank",
                "lora",
                "lora_adapter_path",
                "use_dist_checkpointing",
            ):
                other = changed(config, f"{section}.{name}", "another")
                if key(other) == before:
                    kept.add(name)
                assert (key(other) == before) == (name in NEUTRAL), name
    assert kept  # the sections were walked


def test_every_neutral_setting_is_one_of_verl(composed):
    known = set()
    for engine, section in SECTIONS.items():
        parts = composed(engine).actor_rollout_ref
        known |= {*parts.model, *parts.ref[section], *parts.actor[section]}
    assert known >= NEUTRAL


def test_with_an_adapter_the_reference_is_the_actor_without_it(composed, key):
    config = composed("dp", "actor_rollout_ref.model.lora_rank=8")
    config.actor_rollout_ref.actor.fsdp_config.model_dtype = "bf16"
    assert key(config) == key(changed(config, "actor_rollout_ref.model.lora_rank", 16))
    assert key(config) == key(changed(config, "actor_rollout_ref.model.lora_adapter_path", "/an/adapter"))
    assert key(config) == key(changed(config, "actor_rollout_ref.ref.fsdp_config.model_dtype", "fp16"))
    assert key(config) != key(changed(config, "actor_rollout_ref.actor.fsdp_config.model_dtype", "fp32"))


@pytest.mark.parametrize(
    "name, value",
    [
        ("actor_rollout_ref.rollout.temperature", 0.5),
        ("actor_rollout_ref.model.override_config.rope_theta", 2.0),
        ("actor_rollout_ref.ref.strategy", "fsdp2"),
        ("actor_rollout_ref.ref.fsdp_config.mixed_precision.param_dtype", "fp32"),
        ("actor_rollout_ref.ref.fsdp_config.model_dtype", "bf16"),
        ("actor_rollout_ref.model.trust_remote_code", True),
        ("actor_rollout_ref.model.lora_rank", 8),  # the reference is then the actor's engine
    ],
)
def test_settings_that_people_change(composed, key, name, value):
    config = composed()
    config.actor_rollout_ref.actor.fsdp_config.model_dtype = "bf16"
    assert key(changed(config, name, value)) != key(config)


def test_settings_of_megatron(composed, key, tmp_path):
    config = composed("megatron")
    at = "actor_rollout_ref.ref.megatron"
    for name, value in (
        ("override_transformer_config.moe_router_topk", 2),
        ("override_mcore_model_config.x", 1),
        ("dtype", "float32"),
        ("vanilla_mbridge", not OmegaConf.select(config, f"{at}.vanilla_mbridge")),
    ):
        assert key(changed(config, f"{at}.{name}", value)) != key(config), name
    # Both halves of the same layer split: rounding alone.
    assert key(changed(config, f"{at}.tensor_model_parallel_size", 2)) == key(config)


def test_a_distributed_checkpoint_is_known_by_its_content(composed, key, tmp_path, model):
    paths = [tmp_path / name for name in "abc"]
    for path, content in zip(paths, ("one", "two", "one"), strict=True):
        path.mkdir()
        (path / "__0_0.distcp").write_text(content)
    at = "actor_rollout_ref.ref.megatron"
    first, second, third = (
        composed("megatron", f"{at}.use_dist_checkpointing=true", f"{at}.dist_checkpointing_path={path}")
        for path in paths
    )
    assert key(first) != key(second) and key(first) == key(third)
    # verl reads no weights from the model's folder then.
    (model / "model.safetensors").unlink()
    assert key(first) == key(third)
    (model / "config.json").write_text("{}")
    assert key(first) not in (key(second), "")
    with pytest.raises(ValueError, match=f"{at}.dist_checkpointing_path=.*/none: there is no such folder"):
        key(composed("megatron", f"{at}.use_dist_checkpointing=true", f"{at}.dist_checkpointing_path={tmp_path}/none"))


def test_another_configuration_or_code_of_the_model_changes_the_key(composed, key, tmp_path, model):
    other = tmp_path / "configuration"
    other.mkdir()
    (other / "config.json").write_text('{"rope_theta": 50}')
    config = composed()
    renamed = composed("dp", f"actor_rollout_ref.model.hf_config_path={other}")
    before = key(renamed)
    assert before != key(config)
    (other / "config.json").write_text('{"rope_theta": 60}')
    assert key(renamed) != before
    for file in ("config.json", "model.safetensors", "modeling_own.py"):
        before = key(config)
        (model / file).write_text("changed")
        assert key(config) != before, file


def test_an_external_library_is_known_by_its_code(composed, key, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_layers.py").write_text("x = 1")
    config = composed("dp", "actor_rollout_ref.model.external_lib=own_layers")
    before = key(config)
    assert before != key(composed())
    (tmp_path / "own_layers.py").write_text("x = 2")
    assert key(config) != before
    package = tmp_path / "own_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "layers.py").write_text("x = 1")
    config = composed("dp", "actor_rollout_ref.model.external_lib=own_package")
    before = key(config)
    (package / "layers.py").write_text("x = 2")
    assert key(config) != before
    for built_in in ("sys", "builtins"):  # which verl imports as well
        assert key(composed("dp", f"actor_rollout_ref.model.external_lib={built_in}"))
    with pytest.raises(ValueError, match=r"names nope\.mod, which is no module here"):
        key(composed("dp", "actor_rollout_ref.model.external_lib=nope.mod"))


def test_modules_that_change_verl_in_every_process_are_in_it(composed, key, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "their_patches.py").write_text("x = 1")
    before = key(composed())
    monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", "fgrpo_plugin.host.register")
    assert key(composed()) == before
    monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", "fgrpo_plugin.host.register,their_patches")
    with_theirs = key(composed())
    (tmp_path / "their_patches.py").write_text("x = 2")
    assert len({before, with_theirs, key(composed())}) == 3


def test_versions_of_what_computes_are_in_it(composed, tmp_path):
    found = reference_identity(composed(), tmp_path / "hashes.json")
    assert found["versions"]["verl"] == version("verl") and found["versions"]["transformers"] == version("transformers")


def test_number_formats(composed):
    config = composed()
    assert reference_dtype(config) == "bf16" and reference_engine(config)[0] == "fsdp_config"
    assert (
        reference_dtype(changed(config, "actor_rollout_ref.ref.fsdp_config.mixed_precision.param_dtype", "fp32"))
        == "fp32"
    )
    assert (
        reference_dtype(changed(composed("megatron"), "actor_rollout_ref.ref.megatron.dtype", "float32")) == "float32"
    )


def test_prefs_check_finds_the_caches_of_a_folder_by_this_key(composed, model, tmp_path):
    """It knows the folder alone: a run that changed the model otherwise has another reference."""
    from fgrpo_plugin.preference.model_files import model_fingerprint
    from fgrpo_plugin.preference.reference_ranking import is_of_folder

    weights = model_fingerprint(str(model), "--model", tmp_path / "hashes.json")
    at = "actor_rollout_ref.model"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    for same, *overrides in (
        (True,),
        (True, f"+{at}.override_config.attn_implementation=eager", "actor_rollout_ref.rollout.temperature=0.5"),
        (False, f"+{at}.override_config.rope_theta=5"),
        (False, f"{at}.hf_config_path={tmp_path / 'other'}"),
        (False, f"{at}.external_lib=json"),
    ):
        found = reference_identity(composed("dp", *overrides), tmp_path / "hashes.json")
        assert is_of_folder(json.loads(json.dumps(found)), weights) == same, overrides
    (model / "config.json").write_text('{"rope_theta": 5}')
    assert not is_of_folder(reference_identity(composed(), tmp_path / "hashes.json"), weights)
