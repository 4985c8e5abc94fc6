"""Divergences known by f and f' alone: equal to the closed forms of the table, and refused where they are none."""

import math

import pytest
import torch

from fgrpo_plugin import divergences
from fgrpo_plugin.divergences import available_divergences, get_divergence, register_divergence
from tests.test_divergences import definition, gradient, tensor


@pytest.fixture
def table(monkeypatch):
    monkeypatch.setattr(divergences, "_TABLE", dict(divergences._TABLE))


REGISTERED = {
    "kl": (lambda t: t * torch.log(t), lambda t: torch.log(t) + 1),
    "reverse_kl": (lambda t: -torch.log(t), lambda t: -1 / t),
    "pearson_restricted": (lambda t: (t - 1) ** 2, lambda t: 2 * (t - 1)),
    "neyman": (lambda t: (1 - t) ** 2 / t, lambda t: 1 - t**-2),
    "squared_hellinger": (lambda t: (t.sqrt() - 1) ** 2, lambda t: 1 - t**-0.5),
    "jensen_shannon": (
        lambda t: t * torch.log(t) - (t + 1) * torch.log((t + 1) / 2),
        lambda t: torch.log(2 * t / (t + 1)),
    ),
}


@pytest.mark.parametrize("name", REGISTERED)
def test_registered_divergence_equals_its_closed_form(name, table):
    register_divergence("mine", *REGISTERED[name])
    assert available_divergences()[-1] == "mine"
    mine, known = get_divergence("mine"), get_divergence(name, "density_ratio")
    low, high = mine.range
    assert low < -8 and high > 20
    assert get_divergence("mine").link_name == "density_ratio"
    u = torch.linspace(-8, 8, 33, dtype=torch.float64)
    for ours, theirs in ((mine.link, known.link), (mine.conjugate_of_link, known.conjugate_of_link)):
        torch.testing.assert_close(ours(u), theirs(u), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(gradient(ours, u), gradient(theirs, u), rtol=1e-8, atol=1e-8)
        edges = tensor([low, high, -3e38, 3e38], torch.float32)
        assert ours(edges).dtype == torch.float32
        assert torch.isfinite(ours(edges)).all() and torch.isfinite(gradient(ours, edges)).all()
        inside = torch.linspace(max(low, -40), min(high, 40), 41, dtype=torch.float64)
        torch.testing.assert_close(gradient(ours, inside), gradient(theirs, inside), rtol=2e-3, atol=2e-6)
    s = known.link(u)
    torch.testing.assert_close(mine.conjugate(s), known.conjugate(s), rtol=1e-8, atol=1e-8)
    limit = definition(name, {})[2]
    assert math.isinf(limit) or mine.conjugate(tensor(limit + 0.1)).item() == math.inf
    p, q = tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]), tensor([[0.25, 0.0, 0.75], [0.1, 0.6, 0.3]])
    torch.testing.assert_close(mine.exact(p, q), known.exact(p, q))
    assert mine.slopes == pytest.approx(known.slopes)


@pytest.mark.parametrize(
    ("name", "f", "df", "message"),
    [
        ("kl", lambda t: (t - 1) ** 2, lambda t: 2 * (t - 1), "name='kl' is taken"),
        ("alpha", lambda t: (t - 1) ** 2, lambda t: 2 * (t - 1), "name='alpha' is taken"),
        ("mine", lambda t: t**2, lambda t: 2 * t, r"f\(1\) = 1.0 must be 0"),
        ("mine", lambda t: (t - 1) ** 2, lambda t: t - 1, "not the derivative of its generator: at t = "),
        ("mine", lambda t: torch.log(t), lambda t: 1 / t, "must increase strictly"),
        ("mine", lambda t: (t - 1).abs(), lambda t: torch.sign(t - 1), "must increase strictly"),
    ],
)
def test_registration_refuses(name, f, df, message, table):
    with pytest.raises(ValueError, match=message):
        register_divergence(name, f, df)
    assert "mine" not in available_divergences()


def test_registered_name_is_taken_and_has_no_variational_link(table):
    register_divergence("mine", *REGISTERED["kl"])
    with pytest.raises(ValueError, match="name='mine' is taken"):
        register_divergence("mine", *REGISTERED["kl"])
    with pytest.raises(ValueError, match="from f and f' alone"):
        get_divergence("mine", "variational")
