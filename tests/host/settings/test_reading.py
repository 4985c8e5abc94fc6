"""What a run's configuration is taken to ask for."""

import pytest

from fgrpo_plugin.host.settings.switch import complete
from tests.support.overrides import HAL, F


def test_a_schedule_keeps_both_halves_whatever_its_values(stock_config, inputs, preferences):
    from fgrpo_plugin.host.settings.reading import is_offline, joins_preferences

    schedule = f"{F}.lam={{schedule: linear, start: 0, end: 1}}"
    config = stock_config(*inputs, HAL, preferences, schedule)
    complete(config)
    assert config.actor_rollout_ref.actor.policy_loss.loss_mode == "f_hal"
    assert joins_preferences(config) and not is_offline(config)


LOSS = "actor_rollout_ref.actor.policy_loss.f_divergence"
NOT_READ = "(Interpolation key 'nope' not found); correct the ${...} in it, or write the value itself."


@pytest.mark.parametrize(
    "name, estimator", [(LOSS, "f_grpo"), ("data.preference", "f_hal"), ("data.preference", "f_grpo")]
)
@pytest.mark.parametrize(
    "value, sentence",
    [
        ("[1]", "{}=[1] must be a section; write ++{}.<setting>=<value>."),
        ("3", "{}=3 must be a section; write ++{}.<setting>=<value>."),
        (
            "'" + "two lines\n" * 100 + "'",
            "{}=" + "two lines " * 20 + " must be a section; write ++{}.<setting>=<value>.",
        ),
        ("'???'", "{}=??? has no value yet; set it, or remove it."),
        ("'${nope}'", f"{{}} cannot be read {NOT_READ}"),
        ("{files: '???'}", "{}.files=??? has no value yet; set it, or remove it."),
        ("{files: [a, '???']}", "{}.files[1]=??? has no value yet; set it, or remove it."),
        ("{files: '${nope}'}", f"{{}}.files cannot be read {NOT_READ}"),
        ("{lam: {start: '${nope}'}}", f"{{}}.lam.start cannot be read {NOT_READ}"),
        (
            "{files: '${oc.env:NO_SUCH_VARIABLE}'}",
            '{}.files cannot be read (KeyError raised while resolving interpolation: "Environment variable '
            "'NO_SUCH_VARIABLE' not found\"); correct the ${...} in it, or write the value itself.",
        ),
    ],
)
def test_a_section_that_cannot_be_read_is_one_sentence(stock_config, inputs, name, estimator, value, sentence):
    config = stock_config(*inputs, f"algorithm.adv_estimator={estimator}", f"++{name}={value}")
    with pytest.raises(ValueError) as error:
        complete(config)
    assert str(error.value) == sentence.replace("{}", name)


def test_settings_that_are_no_names_are_not_known(stock_config, inputs):
    with pytest.raises(ValueError, match=r"policy_loss\.f_divergence\.1 is not known; choose among preset, "):
        complete(stock_config(*inputs, "algorithm.adv_estimator=f_grpo", f"++{LOSS}={{1: 2}}"))


def test_a_section_is_read_with_what_it_refers_to_and_may_be_missing(stock_config):
    from fgrpo_plugin.host.settings.reading import section_values

    config = stock_config(f"++{LOSS}={{beta: '${{data.seed}}', lam: null}}", "data.seed=3", "++data.preference=null")
    assert section_values(config, LOSS) == {"beta": 3, "lam": None}
    assert section_values(config, "data.preference") == section_values(stock_config(), "data.preference") == {}


def test_another_algorithm_is_left_alone_whatever_its_section_refers_to(stock_config):
    from fgrpo_plugin.host.settings.reading import uses_our_loss

    assert not uses_our_loss(stock_config(f"++{LOSS}='${{nope}}'"))
    assert uses_our_loss(stock_config(f"++{LOSS}={{beta: '${{nope}}'}}"))
