"""verl's configuration as ``main_ppo`` composes it, and what is set in it that verl does not know."""

import pytest

from fgrpo_plugin.host.settings.compose import check_overrides, compose, describe_unknown, unknown_settings


def test_overrides_and_groups_are_composed():
    config = compose(["+fgrpo=math_7b", "data.train_batch_size=24"])
    assert config.data.train_batch_size == 24 and config.algorithm.adv_estimator == "f_grpo"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("+fgrpo=no_such", r"^\+fgrpo=no_such is not known; choose among .*math_7b.*\.$"),
        ("data.train_batch_siz=4", r"^data\.train_batch_siz is not a setting .* nearest: data\.train_batch_size"),
        (
            "actor_rollout_ref.actor.megatron.tensor_model_parallel_size=2",
            r"belongs to model_engine=megatron; this run has model_engine=dp\.$",
        ),
    ],
)
def test_what_cannot_be_composed_is_one_sentence(override, sentence):
    with pytest.raises(ValueError, match=sentence):
        compose([override])


def test_settings_that_were_added_with_a_plus_are_found_unless_their_section_is_free():
    config = compose(
        ["+data.no_such=1", "+actor_rollout_ref.actor.policy_loss.f_divergence.beta=1", "+data.preference.files=[x]"]
    )
    assert unknown_settings(config) == ["data.no_such"]


def test_without_anything_near_the_command_that_prints_them_all_is_named():
    assert "--cfg job` prints them" in describe_unknown("zzz.qqq", "dp")


def test_an_override_that_verl_takes_and_f_grpo_refuses_is_refused(inputs):
    words = [*inputs, "algorithm.adv_estimator=f_grpo"]
    check_overrides(words)
    with pytest.raises(ValueError, match="a group needs at least 2 responses"):
        check_overrides([*words, "actor_rollout_ref.rollout.n=1"])
