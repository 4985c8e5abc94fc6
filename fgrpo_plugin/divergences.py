"""f-divergences: the generator f, its conjugate f*, an increasing link g, and the composite f*(g).

The divergence of D+ (the positive side of a loss, which gets g) from D- (the negative side, which gets f*(g)):

    D_f(D+ || D-) = sup_r  E_{D+}[ g(r) ] - E_{D-}[ f*(g(r)) ],        g: R -> dom f*, increasing

`link="variational"` takes g from f-GAN. `link="density_ratio"` takes g(u) = f'(e^u), for which the optimum is the log
density ratio r = log dD+/dD- and f*(g(u)) = e^u f'(e^u) - f(e^u). All in float32, or in float64 where the input is.

    >>> pearson, r = get_divergence("pearson"), torch.tensor([0.0, 0.5])
    >>> pearson.link(r), pearson.conjugate_of_link(r)  # g(r) = r, f*(g(r)) = r + r^2 / 4
    (tensor([0.0000, 0.5000]), tensor([0.0000, 0.5625]))

Reference: Nowozin et al., "f-GAN", arXiv 1606.00709 (f, f*, variational links); Haldar et al., arXiv 2602.05946.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.nn import functional

from fgrpo_plugin.custom_divergence import EXP_LIMIT, from_generator

__all__ = ["Divergence", "available_divergences", "get_divergence", "register_divergence"]

Function = Callable[[torch.Tensor], torch.Tensor]

_INF, _LOG2 = math.inf, math.log(2.0)
_FLOAT64_WIDENING = 8.0  # exp is finite 8 times as far in float64


@dataclass(frozen=True)
class _Link:
    """g and f*(g), with the (low, high) arguments between which both, and their derivatives, are finite in float32."""

    g: Function
    conjugate_of_g: Function
    range: tuple[float, float] = (-_INF, _INF)


@dataclass(frozen=True)
class _Entry:
    """One row of the table. A string in the place of a link says why that link is refused."""

    f: Function
    conjugate: Function
    slope_at_infinity: float  # f'(inf): the price of a unit of P's mass where Q has none
    variational: _Link | str
    density_ratio: _Link | str
    estimate_offset: float = 0.0
    whole_line: bool = False  # f is finite for t < 0 too; elsewhere f(t < 0) = inf


@dataclass(frozen=True)
class Divergence:
    """One f-divergence with one link; made by `get_divergence`.

    Every method is elementwise but `exact`, takes any floating dtype, computes in float32 (float64 stays float64), and
    carries gradient unless it says otherwise.

    Attributes:
        name: the name it was asked for by.
        link_name: "variational" or "density_ratio".
        alpha: the parameter of the alpha family, else None.
    """

    name: str
    link_name: str
    alpha: float | None
    _entry: _Entry = field(repr=False, compare=False)
    _link: _Link = field(repr=False, compare=False)

    def generator(self, t: torch.Tensor) -> torch.Tensor:
        """f(t); +inf for t < 0, except for `pearson` and `total_variation`, which f-GAN defines on the whole line."""
        t = _real(t)
        value = self._entry.f(t)
        return value if self._entry.whole_line else torch.where(t < 0, _INF, value)

    def conjugate(self, s: torch.Tensor) -> torch.Tensor:
        """f*(s) = sup_t t s - f(t); +inf outside dom f*. No gradient for `jeffreys` and for registered divergences."""
        return self._entry.conjugate(_real(s))

    def link(self, v: torch.Tensor) -> torch.Tensor:
        """g(v), increasing, inside dom f*. An argument outside `range` counts as the edge, with gradient zero."""
        return self._link.g(self._inside(v))

    def conjugate_of_link(self, v: torch.Tensor) -> torch.Tensor:
        """f*(g(v)) in closed form. An argument outside `range` counts as the edge, with gradient zero."""
        return self._link.conjugate_of_g(self._inside(v))

    def inside_range(self, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (g(v), f*(g(v))) of a v that lies inside `range`: not clipping it first saves passes over v."""
        v = _real(v)
        return self._link.g(v), self._link.conjugate_of_g(v)

    def exact(self, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        """D_f(P || Q) = sum_y q(y) f(p(y)/q(y)) of discrete distributions, plus `estimate_offset`.

        Where q = 0 < p the term is p f'(inf), where p = 0 < q it is q f(0), where both vanish it is 0.

        Args:
            p: probabilities, shape (..., Y), each last dimension summing to 1.
            q: the same shape.

        Returns:
            float64, shape (...): the last dimension is summed; +inf where the divergence is.

        Raises:
            ValueError: shapes that disagree, negative or non-finite entries, sums that are not 1 to within 1e-4.
        """
        p, q = torch.as_tensor(p).double(), torch.as_tensor(q).double()
        if p.shape != q.shape:
            raise ValueError(f"p and q must have the same shape, got {tuple(p.shape)} and {tuple(q.shape)}")
        for argument, value in (("p", p), ("q", q)):
            if not bool((value >= 0).all()) or not bool(((value.sum(-1) - 1).abs() <= 1e-4).all()):
                raise ValueError(
                    f"{argument} must hold distributions: entries >= 0 with sum 1 along the last dim: {value}"
                )
        ratio = p / torch.where(q > 0, q, 1.0)
        on_support = (q > 0) & torch.isfinite(ratio)
        inside = q * self.generator(torch.where(on_support, ratio, 1.0))
        # The factor is 0 where q covers p: inf times a gradient of 0 would be NaN.
        outside = p * torch.where(~on_support & (p > 0), self._entry.slope_at_infinity, 0.0)
        return torch.where(on_support, inside, outside).sum(-1) + self.estimate_offset

    @property
    def range(self) -> tuple[float, float]:
        """The interval (low, high) in which g(v), f*(g(v)) and their derivatives are finite in float32."""
        return self._link.range

    @property
    def estimate_offset(self) -> float:
        """Added to a reported divergence estimate, so that D(P, P) = 0; 2 log 2 for `gan`, else 0."""
        return self._entry.estimate_offset

    @property
    def slopes(self) -> tuple[float, float]:
        """(g'(0), (f*.g)'(0)), how hard the positive and the negative side are pushed where the policy is pi_ref."""
        with torch.enable_grad():
            zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
            return (
                torch.autograd.grad(self.link(zero), zero)[0].item(),
                torch.autograd.grad(self.conjugate_of_link(zero), zero)[0].item(),
            )

    def _inside(self, v: torch.Tensor) -> torch.Tensor:
        v = _real(v)
        low, high = self._link.range
        if low == -_INF and high == _INF:
            return v
        widening = _FLOAT64_WIDENING if v.dtype == torch.float64 else 1.0
        return v.clamp(low * widening, high * widening)


def get_divergence(name: str, link: str | None = None, **params: float) -> Divergence:
    """The divergence called `name` with the given link.

    Args:
        name: one of `available_divergences()`.
        link: "variational", "density_ratio", or None: variational where the entry has one, else density_ratio.
        params: `alpha` (a finite number, not within 1e-6 of 0 or 1), required by the alpha family, refused elsewhere.

    Raises:
        ValueError: unknown name, link or parameter; a combination that does not exist (the message says why).
    """
    if name == "kldo":
        raise ValueError(
            "divergence='kldo': its log-mean-exp couples all rows of a step, but f-GRPO and f-HAL need a mean "
            "over rows; use 'kl' (the same divergence without the log), or fgrpo_plugin.losses.kldo_loss by itself"
        )
    if name not in available_divergences():
        raise ValueError(f"divergence={name!r:.200} is not known; choose among {', '.join(available_divergences())}")
    alpha = params.pop("alpha", None)
    if params:
        raise ValueError(f"unknown parameter {sorted(params)} for divergence {name!r}; only 'alpha' takes one, `alpha`")
    if (name == "alpha") != (alpha is not None):
        remedy = "pass alpha=..., not 0 or 1" if alpha is None else "only the divergence 'alpha' takes it"
        raise ValueError(f"alpha={alpha!r} with divergence {name!r}: {remedy}")
    entry = _TABLE[name] if alpha is None else _alpha_entry(float(alpha))

    links = {"variational": entry.variational, "density_ratio": entry.density_ratio}
    if link is None:
        link = "density_ratio" if isinstance(entry.variational, str) else "variational"
    if link not in links:
        raise ValueError(f"unknown link={link!r}; choose 'variational', 'density_ratio' or None")
    chosen = links[link]
    if isinstance(chosen, str):
        other = "density_ratio" if link == "variational" else "variational"
        raise ValueError(f"divergence={name!r} has no link={link!r}: {chosen}; use link={other!r}")
    return Divergence(name, link, None if alpha is None else float(alpha), entry, chosen)


def available_divergences() -> tuple[str, ...]:
    """Names that `get_divergence` knows: the table in its order, `alpha`, then registered ones."""
    return (*_BUILT_IN, "alpha", *(name for name in _TABLE if name not in _BUILT_IN))


def register_divergence(name: str, generator: Function, generator_derivative: Function) -> None:
    """Add a divergence known by f and f' alone; it gets the density-ratio link. Counts for this process only.

        g(u) = f'(e^u),    f*(g(u)) = e^u f'(e^u) - f(e^u)

    Both are computed in float64. `range` is found by a scan: it ends where a value leaves float32 or where cancellation
    in f*(g) has eaten its derivative. f(0) and f'(inf), which `exact` needs, are read off at t = e^-300 and e^300, and
    taken as infinite if they have not settled there. `conjugate` searches t between the same two.

    Args:
        name: a name not in use.
        generator: f on positive float64 tensors, elementwise, in torch operations; strictly convex, f(1) = 0.
        generator_derivative: f', likewise.

    Raises:
        ValueError: the name is taken, f(1) is not 0, f' is not the derivative of f, or f' does not increase.
        RuntimeError: from torch, where f or f' is not written in torch operations.
    """
    if name in available_divergences():
        raise ValueError(f"divergence name={name!r} is taken; choose another")
    custom = from_generator(name, generator, generator_derivative)
    why = "it was registered from f and f' alone, which fix only the density-ratio link"
    link = _Link(custom.link, custom.conjugate_of_link, custom.range)
    _TABLE[name] = _Entry(custom.f, custom.conjugate, custom.slope_at_infinity, variational=why, density_ratio=link)


def _real(x: torch.Tensor) -> torch.Tensor:
    x = torch.as_tensor(x)
    return x if x.dtype == torch.float64 else x.float()


def _below(limit: float, formula: Function, *, closed: bool = False) -> Function:
    """`formula` for s < limit (s <= limit if closed), +inf above; the argument is masked first, so no NaN is made."""

    def conjugate(s: torch.Tensor) -> torch.Tensor:
        outside = s > limit if closed else s >= limit
        return torch.where(outside, _INF, formula(torch.where(outside, limit - 1.0, s)))

    return conjugate


def _softplus(x: torch.Tensor) -> torch.Tensor:
    # torch turns linear at 20, which is 2e-9 off in float64; at 40 the difference is below either rounding.
    return functional.softplus(x, threshold=40.0)


def _jeffreys_conjugate(s: torch.Tensor) -> torch.Tensor:
    """Solve f'(e^u) = u + 1 - e^-u = s by Newton in float64; then f*(s) = e^u + u - 1."""
    target = s.detach().double()
    # Left of the root of a concave increasing function, from where Newton climbs without overshooting.
    u = torch.relu(target - 1) - torch.log1p(torch.relu(-target))
    for _ in range(30):
        decay = torch.exp(-u)
        u = u + (target - u - 1 + decay) / (1 + decay)
    return (torch.expm1(u) + u).to(s.dtype)


_E = EXP_LIMIT
_PEARSON_RATIO = _Link(lambda u: 2 * torch.expm1(u), lambda u: torch.expm1(2 * u), (-_INF, _E / 2))
_REVERSE_KL = _Link(lambda v: -torch.exp(-v), lambda v: v - 1, (-_E, _INF))
_JENSEN_SHANNON = _Link(lambda v: _LOG2 - _softplus(-v), lambda v: _softplus(v) - _LOG2)
_GAN = _Link(lambda v: -_softplus(-v), _softplus)
_SQUARE_LIMIT = 1e19  # v^2 / 4 overflows float32 at 3.7e19

# Name: f and f*; f'(inf); the variational link (arXiv 1606.00709) and the density-ratio link, each g, f*(g), range.
# fmt: off
_TABLE: dict[str, _Entry] = {  # the one place of the formulas; a new row also needs an entry in theory.py and docs/make
    "kl": _Entry(
        lambda t: torch.xlogy(t, t), lambda s: torch.exp(s - 1), _INF,
        _Link(lambda v: v, lambda v: torch.exp(v - 1), (-_INF, _E)),
        _Link(lambda u: 1 + u, torch.exp, (-_INF, _E)),
    ),
    "reverse_kl": _Entry(
        lambda t: -torch.log(t), _below(0.0, lambda s: -1 - torch.log(-s)), 0.0,
        _REVERSE_KL,
        _REVERSE_KL,
    ),
    "pearson": _Entry(
        lambda t: (t - 1) ** 2, lambda s: s + s**2 / 4, _INF,
        _Link(lambda v: v, lambda v: v + v**2 / 4, (-_SQUARE_LIMIT, _SQUARE_LIMIT)),
        _PEARSON_RATIO,
        whole_line=True,
    ),
    "pearson_restricted": _Entry(  # t >= 0 only, so f* is flat where pearson's turns up again
        lambda t: (t - 1) ** 2, lambda s: s.clamp(min=-2) + s.clamp(min=-2) ** 2 / 4, _INF,
        _Link(lambda v: v, lambda v: v.clamp(min=-2) + v.clamp(min=-2) ** 2 / 4, (-_SQUARE_LIMIT, _SQUARE_LIMIT)),
        _PEARSON_RATIO,
    ),
    "neyman": _Entry(
        lambda t: (1 - t) ** 2 / t, _below(1.0, lambda s: 2 - 2 * torch.sqrt(1 - s), closed=True), 1.0,
        _Link(lambda v: -torch.expm1(-v), lambda v: -2 * torch.expm1(-v / 2), (-_E, _INF)),
        _Link(lambda u: -torch.expm1(-2 * u), lambda u: -2 * torch.expm1(-u), (-_E / 2, _INF)),
    ),
    "squared_hellinger": _Entry(
        lambda t: (torch.sqrt(t) - 1) ** 2, _below(1.0, lambda s: s / (1 - s)), 1.0,
        _Link(lambda v: -torch.expm1(-v), torch.expm1, (-_E, _E)),
        _Link(lambda u: -torch.expm1(-u / 2), lambda u: torch.expm1(u / 2), (-2 * _E, 2 * _E)),
    ),
    "jensen_shannon": _Entry(
        lambda t: torch.xlogy(t, t) - (t + 1) * torch.log((t + 1) / 2),
        _below(_LOG2, lambda s: -torch.log1p(-torch.expm1(s))), _LOG2,
        _JENSEN_SHANNON,
        _JENSEN_SHANNON,
    ),
    "gan": _Entry(
        lambda t: torch.xlogy(t, t) - (t + 1) * torch.log(t + 1),
        _below(0.0, lambda s: -torch.log(-torch.expm1(s))), 0.0,
        _GAN,
        _GAN,
        estimate_offset=2 * _LOG2,
    ),
    "total_variation": _Entry(
        lambda t: (t - 1).abs() / 2, lambda s: torch.where(s.abs() > 0.5, _INF, s), 0.5,
        _Link(lambda v: torch.tanh(v) / 2, lambda v: torch.tanh(v) / 2),
        "f'(e^u) is a sign, so it has no gradient",
        whole_line=True,
    ),
    "jeffreys": _Entry(
        lambda t: (t - 1) * torch.log(t), _jeffreys_conjugate, _INF,
        "f* needs Lambert's W, so there is no closed form for f*(g)",
        _Link(lambda u: u - torch.expm1(-u), lambda u: torch.expm1(u) + u, (-_E, _E)),
    ),
}
# fmt: on
_BUILT_IN = tuple(_TABLE)


def _alpha_entry(a: float) -> _Entry:
    """f(t) = (t^a - 1 - a (t - 1)) / (a (a - 1)); a -> 1 is kl, a -> 0 is reverse_kl, a = 2 is pearson / 2."""
    if not math.isfinite(a) or min(abs(a), abs(a - 1)) < 1e-6:
        raise ValueError(f"alpha={a} must be finite and neither 0 (use 'reverse_kl') nor 1 (use 'kl')")

    def conjugate(s: torch.Tensor) -> torch.Tensor:
        base = 1 + (a - 1) * s
        value = (base.clamp(min=0) ** (a / (a - 1)) - 1) / a  # for a > 1 and base < 0 the supremum is at t = 0
        return value if a > 1 else torch.where(base < 0, _INF, value)

    def edge(k: float) -> float:  # e^{ku} and e^{ku}/k are finite for |u| up to here
        return (EXP_LIMIT + min(0.0, math.log(abs(k)))) / abs(k)

    low = max((-edge(k) for k in (a - 1, a) if k < 0), default=-_INF)
    high = min((edge(k) for k in (a - 1, a) if k > 0), default=_INF)
    return _Entry(
        f=lambda t: (torch.expm1(a * torch.log(t)) - a * (t - 1)) / (a * (a - 1)),
        conjugate=conjugate,
        slope_at_infinity=_INF if a > 1 else 1 / (1 - a),
        variational="f-GAN lists none for the alpha family",
        density_ratio=_Link(
            lambda u: torch.expm1((a - 1) * u) / (a - 1), lambda u: torch.expm1(a * u) / a, (low, high)
        ),
    )
