"""Settings are what their types say, strictly, and what is wrong with one is one sentence."""

import copy
import math
import pickle
from dataclasses import FrozenInstanceError, asdict, fields, replace
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from fgrpo_plugin.typed_settings import (
    Expected,
    Finite,
    Name,
    NotNegative,
    Positive,
    Share,
    expected,
    require_one_of,
    settings_of,
    typed_settings,
)


@typed_settings(prefix="section.")
class Example:
    beta: Positive = 0.1
    """Scale of the
    reward."""
    gamma: NotNegative | None = None
    level: Literal["row", "token"] = "row"
    scale: Literal["unit"] | list[Positive] | None = None
    lam: Annotated[Share | dict[str, Any], Expected("a number in [0, 1], or a schedule")] = 0.0
    steps: Annotated[int, Field(ge=2)] | None = None
    pairs: bool = False
    alpha: Finite | None = None
    name: Name = "x"

    def __post_init__(self) -> None:
        if self.steps == 3:
            raise ValueError("section.steps=3 is odd; take 4.")


@pytest.mark.parametrize(
    "values",
    [
        {"beta": 1},
        {"beta": 1e-300, "gamma": 0, "lam": 1},
        {"scale": "unit"},
        {"scale": [1, 2.5]},
        {"lam": {"schedule": "x"}},
        {"steps": 2, "pairs": True, "level": "token", "alpha": -2.0},
    ],
)
def test_what_is_in_range_is_taken_as_it_is(values):
    made = Example(**values)
    assert {name: getattr(made, name) for name in values} == values
    assert asdict(made) == asdict(Example()) | values


@pytest.mark.parametrize(
    "name, must, wrong",
    [
        ("beta", "a number > 0", [0, -1, "0.1", True, None, math.nan, math.inf, [1], {}]),
        ("gamma", "a number >= 0, or null", [-0.1, "0", False, math.inf]),
        ("level", "one of row, token", ["rows", "Row", None, 1, ["row"]]),
        ("scale", "one of unit, or a list of a number > 0, or null", ["big", [1, 0], [1, "2"], {}, 2.0]),
        ("lam", "a number in [0, 1], or a schedule", [-0.1, 1.1, "0.5", True, None, [0.5], {1: 2}]),
        ("steps", "a whole number >= 2, or null", [1, 2.0, "2", True]),
        ("pairs", "true or false", ["yes", 1, None]),
        ("alpha", "a number, or null", ["0.5", True, math.nan]),
        ("name", "a name", ["", 1, None]),
    ],
)
def test_what_is_not_is_one_sentence_with_setting_value_and_range(name, must, wrong):
    for value in wrong:
        with pytest.raises(ValueError) as error:
            Example(**{name: value})
        assert str(error.value) == f"section.{name}={value!r} must be {must}."
        assert type(error.value) is ValueError and error.value.__cause__ is None


def test_unknown_settings_and_checks_of_several_are_said_as_they_are():
    with pytest.raises(ValueError, match=r"^section\.betta is not known; choose among beta, gamma, level, scale, lam"):
        Example(betta=1)
    with pytest.raises(ValueError, match=r"^section\.steps=3 is odd; take 4\.$"):
        Example(steps=3)


def test_long_values_are_cut():
    with pytest.raises(ValueError, match=r"^section\.level='a{199} must be one of row, token\.$"):
        Example(level="a" * 5000)
    with pytest.raises(ValueError, match=r"^section\.a{200} is not known; choose among beta"):
        Example(**{"a" * 5000: 1})
    with pytest.raises(ValueError, match=r"^level='a{199} must be one of sequence, token\.$"):
        require_one_of("level", "a" * 5000, ("sequence", "token"))


def test_a_setting_without_a_default_is_asked_for():
    @typed_settings()
    class Needs:
        beta: Positive

    with pytest.raises(ValueError, match=r"^beta is missing: it must be a number > 0\.$"):
        Needs()


def test_they_are_dataclasses_that_travel():
    made = Example(beta=2.0)
    assert [field.name for field in fields(made)][:2] == ["beta", "gamma"]
    assert replace(made, gamma=1.0) == Example(beta=2.0, gamma=1.0) and copy.deepcopy(made) == made
    assert pickle.loads(pickle.dumps(made)) == made
    with pytest.raises(ValueError, match="gamma=-1"):
        replace(made, gamma=-1)


def test_nothing_is_assigned_unchecked():
    made = Example()
    with pytest.raises(FrozenInstanceError, match="beta"):
        made.beta = -1
    assert made == Example()


def test_each_setting_is_described_once():
    found = {name: rest for name, *rest in settings_of(Example)}
    assert found["beta"] == [0.1, "a number > 0", "Scale of the reward."]
    assert found["steps"] == [None, "a whole number >= 2, or null", ""]
    assert list(found) == [field.name for field in fields(Example)]


@pytest.mark.parametrize(
    "annotation, words",
    [
        (int, "a whole number"),
        (Annotated[int, Field(gt=3)], "a whole number > 3"),
        (str, "text"),
        (dict[str, Any], "a mapping"),
        (Annotated[Name, Expected("a folder")] | None, "a folder, or null"),
        (list[Name], "a list of a name"),
    ],
)
def test_types_in_words(annotation, words):
    assert expected(annotation) == words


def test_an_argument_among_words():
    require_one_of("level", "token", ("sequence", "token"))
    with pytest.raises(ValueError, match=r"^level='row' must be one of sequence, token\.$"):
        require_one_of("level", "row", ("sequence", "token"))
