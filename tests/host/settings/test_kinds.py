"""Values of another kind than the setting has are refused by name, before anything reads them."""

import copy

import pytest
from omegaconf import OmegaConf

from fgrpo_plugin.host.settings.kinds import SECTIONS, WHERE_SET, check_kinds, naming_what_cannot_be_read

ENV = "ray_kwargs.ray_init.runtime_env.env_vars"
WRONG = {
    "a section": (3, "x", [1]),
    "text": (3, True, ["x"], {"a": 1}, "a\0b"),
    "text, or a list of text": (3, True, ["x", 3], {"a": 1}),
    "true or false": ("no", "false", 2, 0.5, ["x"], {}),
    "a number": ("3", True, [3], {}),
}
RIGHT = {
    "a section": ({}, {"a": 1}),
    "text": ("x", "\u4e2d"),
    "text, or a list of text": ("x", [], ["x", "y"]),
    "true or false": (True, False, 0, 1),
    "a number": (0, -1, 0.5),
}


@pytest.fixture
def stock():
    """The sections that are always there, and nothing in them: whole configurations are composed by other tests."""
    config = OmegaConf.create()
    for name in SECTIONS:
        OmegaConf.update(config, name, {}, force_add=True)
    return config


def changed(stock, name, value):
    config = copy.deepcopy(stock)
    OmegaConf.update(config, name, value, merge=False, force_add=True)
    return config


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_that_is_always_there_must_be_one(stock, name):
    check_kinds(stock)
    for value in (None, 0, "x", [1]):
        with pytest.raises(ValueError, match=rf"^{name}=.* must be a section; set what is in it"):
            check_kinds(changed(stock, name, value))


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in WHERE_SET.items() for name in names])
def test_a_setting_has_its_kind_or_null(stock, kind, name):
    for value in (*RIGHT[kind], None):
        check_kinds(changed(stock, name, value))
    for value in WRONG[kind]:
        with pytest.raises(ValueError, match=rf"^{name}=.* must be {kind}, or null\.$"):
            check_kinds(changed(stock, name, value))


@pytest.mark.parametrize("variable", ["", "A=B", "A\0"])
def test_a_variable_of_the_workers_has_a_name_that_a_process_takes(stock, variable):
    check_kinds(changed(stock, ENV, {"A": "1", "B": None}))
    with pytest.raises(ValueError, match=rf"^{ENV}: .* cannot be a variable; correct its name"):
        check_kinds(changed(stock, ENV, {variable: "1"}))
    with pytest.raises(ValueError, match="cannot be a variable"):
        check_kinds(changed(stock, ENV, {"A": "1\0"}))


def test_what_omegaconf_cannot_read_is_one_sentence_that_names_the_setting():
    config = OmegaConf.create({"data": {"a": "${nowhere}", "b": "???", "c": "${unknown:1}"}})
    for name, reason in (
        ("a", r"data\.a cannot be read \(Interpolation key 'nowhere' not found\); correct the \$\{\.\.\.\} in it, or"),
        ("b", r"data\.b=\?\?\? has no value yet; set it\.$"),
        ("c", r"data\.c cannot be read \(Unsupported interpolation type unknown\)"),
    ):
        with pytest.raises(ValueError, match=rf"^{reason}") as caught, naming_what_cannot_be_read():
            config.data[name]
        assert "\n" not in str(caught.value) and type(caught.value) is ValueError
