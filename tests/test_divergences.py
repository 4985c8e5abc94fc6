"""Divergences against their definitions: suprema found numerically, closed forms, finite differences."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import wrightomega

from fgrpo_plugin.divergences import available_divergences, get_divergence
from fgrpo_plugin.losses import f_grpo_loss, fdo_loss

LOG2 = math.log(2)
ALPHAS = (-1.5, -0.3, 0.3, 0.5, 0.9, 2.0, 3.5)

# The definitions once more, in plain Python: f, and f(0), f'(inf) from the limits on paper.
GENERATORS = {
    "kl": (lambda t: t * math.log(t), 0, math.inf),
    "reverse_kl": (lambda t: -math.log(t), math.inf, 0),
    "pearson": (lambda t: (t - 1) ** 2, 1, math.inf),
    "pearson_restricted": (lambda t: (t - 1) ** 2, 1, math.inf),
    "neyman": (lambda t: (1 - t) ** 2 / t, math.inf, 1),
    "squared_hellinger": (lambda t: (math.sqrt(t) - 1) ** 2, 1, 1),
    "jensen_shannon": (lambda t: t * math.log(t) - (t + 1) * math.log((t + 1) / 2), LOG2, LOG2),
    "gan": (lambda t: t * math.log(t) - (t + 1) * math.log(t + 1), 0, 0),
    "total_variation": (lambda t: abs(t - 1) / 2, 0.5, 0.5),
    "jeffreys": (lambda t: (t - 1) * math.log(t), math.inf, math.inf),
}
NO_VARIATIONAL = ("jeffreys", "alpha")

ENTRIES = [(name, {}) for name in GENERATORS] + [("alpha", {"alpha": a}) for a in ALPHAS]
LINKS = [
    (name, link, params)
    for name, params in ENTRIES
    for link in ("variational", "density_ratio")
    if not (link == "variational" and name in NO_VARIATIONAL)
    and not (link == "density_ratio" and name == "total_variation")
]
DENSITY_RATIOS = [(name, params) for name, link, params in LINKS if link == "density_ratio"]


def definition(name, params):
    if name == "alpha":
        a = params["alpha"]
        f = lambda t: (t**a - 1 - a * (t - 1)) / (a * (a - 1))  # noqa: E731
        return f, 1 / a if a > 0 else math.inf, math.inf if a > 1 else 1 / (1 - a)
    return GENERATORS[name]


def supremum(name, params, s):
    """sup_t t s - f(t) by bounded scalar search: over the line for pearson, else over t = e^u."""
    f = definition(name, params)[0]
    if name in ("pearson", "total_variation"):
        objective, bounds = (lambda t: f(t) - t * s), (-400.0, 400.0)
    else:
        objective, bounds = (lambda u: f(math.exp(u)) - math.exp(u) * s), (-30.0, 30.0)
    return -minimize_scalar(objective, bounds=bounds, method="bounded", options={"xatol": 1e-10}).fun


def tensor(values, dtype=torch.float64):
    return torch.as_tensor(values, dtype=dtype)


def gradient(function, v):
    v = v.clone().requires_grad_()
    return torch.autograd.grad(function(v).sum(), v)[0]


@pytest.mark.parametrize(("name", "params"), ENTRIES)
def test_generator_is_the_definition(name, params):
    d = get_divergence(name, **params)
    f, at_zero, _ = definition(name, params)
    t = [0.01, 0.3, 1.0, 1.7, 20.0]
    torch.testing.assert_close(d.generator(tensor(t)), tensor([f(x) for x in t]))
    assert d.generator(tensor(0.0)).item() == pytest.approx(at_zero)
    outside = d.generator(tensor(-0.5)).item()
    assert outside == (definition(name, params)[0](-0.5) if name in ("pearson", "total_variation") else math.inf)


@pytest.mark.parametrize(("name", "params"), ENTRIES)
def test_conjugate_is_the_supremum(name, params):
    d = get_divergence(name, **params)
    f = definition(name, params)[0]
    if name == "total_variation":
        slopes = np.linspace(-0.5, 0.5, 11)
    else:  # every slope that f takes between t = e^-4 and e^4
        slopes = [(f(t + 1e-6 * t) - f(t - 1e-6 * t)) / (2e-6 * t) for t in np.exp(np.linspace(-4, 4, 17))]
    expected = [supremum(name, params, s) for s in slopes]
    torch.testing.assert_close(d.conjugate(tensor(slopes)), tensor(expected), rtol=1e-7, atol=1e-7)


def test_conjugate_outside_its_domain():
    infinite = {"reverse_kl": 0.0, "neyman": 1.01, "squared_hellinger": 1.0, "jensen_shannon": 0.7, "gan": 0.0}
    for name, s in infinite.items():
        assert get_divergence(name).conjugate(tensor([s, s + 5])).tolist() == [math.inf, math.inf], name
    assert get_divergence("total_variation").conjugate(tensor([-0.6, 0.6])).tolist() == [math.inf, math.inf]
    assert get_divergence("alpha", alpha=0.5).conjugate(tensor([2.0, 3.0])).tolist() == [math.inf, math.inf]
    assert get_divergence("alpha", alpha=-1.0).conjugate(tensor([0.51])).item() == math.inf
    # Where the best t is 0 the supremum is -f(0), not infinite.
    assert get_divergence("alpha", alpha=2.0).conjugate(tensor([-1.0, -7.0])).tolist() == [-0.5, -0.5]
    assert get_divergence("pearson_restricted").conjugate(tensor([-2.0, -7.0])).tolist() == [-1.0, -1.0]
    assert torch.isnan(get_divergence("reverse_kl").conjugate(tensor(math.nan)))


@settings(deadline=None)
@given(st.floats(-200, 200))
def test_jeffreys_conjugate_is_lambert_w(s):
    w = wrightomega(1 - s).real  # w + log w = 1 - s, and e^-u is that w
    expected = 1 / w - math.log(w) - 1
    assert get_divergence("jeffreys").conjugate(tensor(s)).item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize(("name", "link", "params"), LINKS)
@settings(max_examples=25, deadline=None)
@given(values=st.lists(st.floats(-4, 4), min_size=1, max_size=4))
def test_conjugate_of_link_is_the_supremum_at_the_link(name, link, params, values):
    d = get_divergence(name, link, **params)
    v = tensor(values)
    expected = [supremum(name, params, s) for s in d.link(v).tolist()]
    torch.testing.assert_close(d.conjugate_of_link(v), tensor(expected), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(d.conjugate_of_link(v), d.conjugate(d.link(v)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "link", "params"), LINKS)
@settings(max_examples=25, deadline=None)
@given(v=st.floats(-60, 60), step=st.floats(1e-3, 60))
def test_link_never_decreases_and_stays_in_the_domain(name, link, params, v, step):
    d = get_divergence(name, link, **params)
    low, high = d.link(tensor([v, v + step]))
    assert high >= low
    assert torch.isfinite(d.conjugate_of_link(tensor(v)))
    assert abs(v) > 30 or torch.isfinite(d.conjugate(low))  # beyond, g(v) may round to the end of an open domain


@pytest.mark.parametrize(("name", "link", "params"), LINKS)
def test_link_increases_inside_the_domain(name, link, params):
    d = get_divergence(name, link, **params)
    v = torch.linspace(-8, 8, 161, dtype=torch.float64)
    assert (d.link(v).diff() > 0).all()
    assert torch.isfinite(d.conjugate(d.link(v))).all()
    assert (d.link(50 * v).diff() >= 0).all()  # saturating ones are flat there to float64's rounding


@pytest.mark.parametrize(("name", "params"), DENSITY_RATIOS)
def test_density_ratio_link_is_the_slope_of_f(name, params):
    d = get_divergence(name, "density_ratio", **params)
    f = definition(name, params)[0]
    u = torch.linspace(-3, 3, 13, dtype=torch.float64)
    slopes = [(f(t + 1e-5 * t) - f(t - 1e-5 * t)) / (2e-5 * t) for t in u.exp().tolist()]
    torch.testing.assert_close(d.link(u), tensor(slopes), rtol=1e-7, atol=1e-7)
    # Fenchel-Young holds with equality there: f(t) + f*(f'(t)) = t f'(t).
    torch.testing.assert_close(d.generator(u.exp()) + d.conjugate_of_link(u), u.exp() * d.link(u))


@pytest.mark.parametrize(("name", "link", "params"), LINKS)
@settings(max_examples=25, deadline=None)
@given(t=st.floats(1e-3, 1e3), v=st.floats(-8, 8))
def test_fenchel_young(name, link, params, t, v):
    d = get_divergence(name, link, **params)
    left = d.generator(tensor(t)) + d.conjugate_of_link(tensor(v))
    right = t * d.link(tensor(v))
    assert left >= right - 1e-9 * (1 + left.abs() + right.abs())


@pytest.mark.parametrize(("name", "link", "params"), LINKS)
def test_gradients_against_finite_differences(name, link, params):
    d = get_divergence(name, link, **params)
    v = torch.linspace(-5, 5, 21, dtype=torch.float64) + 0.01
    step = 1e-6
    for function in (d.link, d.conjugate_of_link):
        expected = (function(v + step) - function(v - step)) / (2 * step)
        torch.testing.assert_close(gradient(function, v), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("name", "link", "params"), LINKS)
def test_finite_in_float32_over_the_range_and_clipped_outside(name, link, params):
    d = get_divergence(name, link, **params)
    low, high = d.range
    if link == "variational":
        assert low <= -60 and high >= 60
    low, high = max(low, -1e30), min(high, 1e30)
    inside = tensor([low, low / 2, low / 100, -0.0, high / 100, high / 2, high], torch.float32)
    far = tensor([-3e38, 3e38], torch.float32)
    for function in (d.link, d.conjugate_of_link):
        assert torch.isfinite(function(inside)).all() and torch.isfinite(gradient(function, inside)).all()
        assert torch.isfinite(function(far)).all() and torch.isfinite(gradient(function, far)).all()
        assert torch.isfinite(function(far.double() * 1e200)).all()
        assert torch.isnan(function(tensor(math.nan)))
        for edge, beyond in ((low, low - 1), (high, high + 1)):
            if abs(edge) < 1e6:
                v = tensor([edge, beyond], torch.float32)
                assert function(v)[0] == function(v)[1]
                assert gradient(function, v)[1] == 0


@pytest.mark.parametrize(("name", "link", "params"), LINKS)
def test_clipping_leaves_the_inside_of_the_range_alone(name, link, params):
    d = get_divergence(name, link, **params)
    v = torch.linspace(max(d.range[0], -60.0), min(d.range[1], 60.0), 101)
    for clipped, plain in zip((d.link(v), d.conjugate_of_link(v)), d.inside_range(v), strict=True):
        assert torch.equal(clipped, plain)


@pytest.mark.parametrize(("name", "link", "params"), LINKS)
def test_a_batch_at_the_edge_of_the_range_has_a_finite_mean(name, link, params):
    d = get_divergence(name, link, **params)
    edges = tensor([bound for bound in d.range if math.isfinite(bound)] or [60.0], torch.float32).repeat(256)
    for sign in (1.0, -1.0):
        assert torch.isfinite(f_grpo_loss(edges, torch.full_like(edges, sign), d))
    assert torch.isfinite(fdo_loss(edges, torch.arange(len(edges)) % 2 == 0, d))


def test_declared_ranges():
    assert get_divergence("pearson", "density_ratio").range == (-math.inf, 44)
    assert get_divergence("neyman", "density_ratio").range == (-44, math.inf)
    assert get_divergence("jensen_shannon").range == (-math.inf, math.inf)
    assert get_divergence("alpha", alpha=2).range == (-math.inf, 44)
    assert get_divergence("alpha", alpha=-1).range == (-44, math.inf)
    low, high = get_divergence("alpha", alpha=0.5).range
    assert low == -high and 170 < high < 177


@pytest.mark.parametrize(("name", "link", "params"), LINKS)
def test_float32_keeps_its_digits_and_half_precision_is_upcast(name, link, params):
    d = get_divergence(name, link, **params)
    low, high = (max(d.range[0], -60.0), min(d.range[1], 60.0))
    v = torch.cat([torch.linspace(low, high, 201), torch.linspace(-1e-3, 1e-3, 21)])
    for function in (d.link, d.conjugate_of_link):
        torch.testing.assert_close(function(v).double(), function(v.double()), rtol=2e-5, atol=2e-7)
        for dtype in (torch.bfloat16, torch.float16):
            short = v.to(dtype)
            assert torch.equal(function(short), function(short.float())) and function(short).dtype == torch.float32


def test_float64_keeps_its_digits_in_the_tail():
    # torch's own softplus is linear from 20 on: 2e-9 off.
    v = 20.5
    expected = v + math.log1p(math.exp(-v))
    assert get_divergence("gan").conjugate_of_link(tensor(v)).item() == pytest.approx(expected, abs=1e-14)
    assert get_divergence("gan").link(tensor(-v)).item() == pytest.approx(-expected, abs=1e-14)


# g'(0) and (f*.g)'(0), by hand from the closed forms.
SLOPES = {
    ("kl", "variational"): (1, math.exp(-1)),
    ("kl", "density_ratio"): (1, 1),
    ("reverse_kl", "variational"): (1, 1),
    ("reverse_kl", "density_ratio"): (1, 1),
    ("pearson", "variational"): (1, 1),
    ("pearson", "density_ratio"): (2, 2),
    ("pearson_restricted", "variational"): (1, 1),
    ("pearson_restricted", "density_ratio"): (2, 2),
    ("neyman", "variational"): (1, 1),
    ("neyman", "density_ratio"): (2, 2),
    ("squared_hellinger", "variational"): (1, 1),
    ("squared_hellinger", "density_ratio"): (0.5, 0.5),
    ("jensen_shannon", "variational"): (0.5, 0.5),
    ("jensen_shannon", "density_ratio"): (0.5, 0.5),
    ("gan", "variational"): (0.5, 0.5),
    ("gan", "density_ratio"): (0.5, 0.5),
    ("total_variation", "variational"): (0.5, 0.5),
    ("jeffreys", "density_ratio"): (2, 2),
    ("alpha", "density_ratio"): (1, 1),
}


@pytest.mark.parametrize(("name", "link", "params"), LINKS)
def test_slopes_at_zero(name, link, params):
    assert get_divergence(name, link, **params).slopes == pytest.approx(SLOPES[name, link])
    with torch.no_grad():
        assert get_divergence(name, link, **params).slopes == pytest.approx(SLOPES[name, link])


def test_exact_by_hand():
    p, q = tensor([0.5, 0.5]), tensor([0.25, 0.75])
    expected = {
        "kl": 0.5 * math.log(2) + 0.5 * math.log(2 / 3),
        "reverse_kl": 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2),
        "pearson": 0.25**2 / 0.25 + 0.25**2 / 0.75,
        "neyman": 0.25**2 / 0.5 + 0.25**2 / 0.5,
        "squared_hellinger": 2 - 2 * (math.sqrt(0.125) + math.sqrt(0.375)),
        "total_variation": 0.25,
        "jeffreys": 0.25 * math.log(2) + 0.25 * math.log(1.5),
    }
    for name, value in expected.items():
        assert get_divergence(name).exact(p, q).item() == pytest.approx(value), name
    middle = (p + q) / 2
    kl = get_divergence("kl")
    twice_js = (kl.exact(p, middle) + kl.exact(q, middle)).item()
    assert get_divergence("jensen_shannon").exact(p, q).item() == pytest.approx(twice_js)
    assert get_divergence("gan").exact(p, q).item() == pytest.approx(twice_js)


@pytest.mark.parametrize(("name", "params"), ENTRIES)
def test_exact_with_zeros(name, params):
    d = get_divergence(name, **params)
    f, at_zero, at_infinity = definition(name, params)
    p = tensor([[0.5, 0.5, 0.0, 0.0], [0.2, 0.3, 0.4, 0.1], [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])
    q = tensor([[0.25, 0.0, 0.75, 0.0], [0.2, 0.3, 0.4, 0.1], [0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    offset = 2 * LOG2 if name == "gan" else 0.0
    assert d.estimate_offset == offset
    first = 0.25 * f(2.0) + 0.5 * at_infinity + 0.75 * at_zero
    expected = [first + offset, 0.0, at_zero + at_infinity + offset, f(0.5) + 0.5 * at_infinity + offset]
    torch.testing.assert_close(d.exact(p, q), tensor(expected))
    assert d.exact(p.float(), q.float()).dtype == torch.float64


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)), min_size=2, max_size=6))
def test_density_ratio_attains_the_variational_bound(weights):
    p, q = tensor(weights).T
    p, q = p / p.sum(), q / q.sum()
    for name, params in DENSITY_RATIOS:
        d = get_divergence(name, "density_ratio", **params)
        best = (p / q).log()

        def estimate(r, d=d):
            return ((p * d.link(r)).sum() - (q * d.conjugate_of_link(r)).sum()).item() + d.estimate_offset

        exact = d.exact(p, q).item()
        assert estimate(best) == pytest.approx(exact, rel=1e-7, abs=1e-9)
        assert estimate(best + 0.1) <= exact + 1e-9 and estimate(-best) <= exact + 1e-9


@pytest.mark.parametrize(
    ("arguments", "params", "message"),
    [
        (("kldo",), {}, "divergence='kldo'.*couples all rows.*use 'kl'"),
        (("klx",), {}, "divergence='klx' is not known; choose among kl,"),
        (("kl", "exotic"), {}, "unknown link='exotic'"),
        (("total_variation", "density_ratio"), {}, "sign, so it has no gradient; use link='variational'"),
        (("jeffreys", "variational"), {}, "Lambert's W.*use link='density_ratio'"),
        (("alpha", "variational"), {"alpha": 2.0}, "f-GAN lists none"),
        (("alpha",), {}, "alpha=None.*pass alpha"),
        (("alpha",), {"alpha": 0.0}, r"alpha=0.0 must be finite and neither 0 \(use 'reverse_kl'\)"),
        (("alpha",), {"alpha": 1}, "use 'kl'"),
        (("alpha",), {"alpha": math.nan}, "alpha=nan"),
        (("kl",), {"alpha": 2.0}, "alpha=2.0 with divergence 'kl'"),
        (("kl",), {"order": 2.0}, r"unknown parameter \['order'\]"),
    ],
)
def test_refusals(arguments, params, message):
    with pytest.raises(ValueError, match=message):
        get_divergence(*arguments, **params)


@pytest.mark.parametrize(
    ("p", "q", "message"),
    [
        ([0.5, 0.5], [1.0], "same shape"),
        ([0.5, 0.6], [0.5, 0.5], "p must hold distributions"),
        ([0.5, 0.5], [1.5, -0.5], "q must hold distributions"),
        ([0.5, math.nan], [0.5, 0.5], "p must hold distributions"),
    ],
)
def test_exact_refuses(p, q, message):
    with pytest.raises(ValueError, match=message):
        get_divergence("kl").exact(tensor(p), tensor(q))


def test_names_and_defaults():
    assert available_divergences()[:11] == (*GENERATORS, "alpha")
    assert get_divergence("kl").link_name == "variational"
    assert get_divergence("jeffreys").link_name == "density_ratio"
    assert get_divergence("alpha", alpha=2).alpha == 2.0 and get_divergence("kl").alpha is None
    assert get_divergence("kl") == get_divergence("kl") != get_divergence("kl", "density_ratio")
