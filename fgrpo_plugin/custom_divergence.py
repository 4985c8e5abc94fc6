"""Numerics for a divergence known by f and f' alone: is it usable, where, and what is its conjugate?

All in float64. f and f' are elementwise torch functions of t > 0; t = e^u throughout.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

Function = Callable[[torch.Tensor], torch.Tensor]

EXP_LIMIT = 88.0  # exp is finite up to 88.72 in float32
_FAR = 300.0  # t in [e^-300, e^300] leaves room for squares in float64


class CustomDivergence(NamedTuple):
    """What f and f' alone determine: f with its value at 0, f*, f'(inf), and the density-ratio link."""

    f: Function
    conjugate: Function
    slope_at_infinity: float
    link: Function
    """g(u) = f'(e^u)."""
    conjugate_of_link: Function
    """f*(g(u)) = e^u f'(e^u) - f(e^u)."""
    range: tuple[float, float]
    """Of u, outside of which it is clamped."""


def from_generator(name: str, f: Function, df: Function) -> CustomDivergence:
    """Derive everything else from f and f'.

    Raises:
        ValueError: f(1) is not 0, f' is not the derivative of f, or f' does not increase.
    """
    check_generator(name, f, df)
    low, high = usable_range(f, df)

    def link(u: torch.Tensor) -> torch.Tensor:
        return df(torch.exp(u.clamp(low, high).double())).to(u.dtype)

    def conjugate_of_link(u: torch.Tensor) -> torch.Tensor:
        ratio = torch.exp(u.clamp(low, high).double())
        return (ratio * df(ratio) - f(ratio)).to(u.dtype)

    f_at_zero = limit_at(f, -1)
    slope_at_infinity = limit_at(df, +1)
    return CustomDivergence(
        f=lambda t: torch.where(t == 0, f_at_zero, f(t.double())).to(t.dtype),
        conjugate=lambda s: numeric_conjugate(f, df, slope_at_infinity, s),
        slope_at_infinity=slope_at_infinity,
        link=link,
        conjugate_of_link=conjugate_of_link,
        range=(low, high),
    )


def check_generator(name: str, f: Function, df: Function) -> None:
    """Raise ValueError unless f(1) = 0, df is the derivative of f and df increases, at 25 points of [e^-3, e^3]."""
    t = torch.linspace(-3, 3, 25, dtype=torch.float64).exp().requires_grad_()
    slope = df(t)
    (expected,) = torch.autograd.grad(f(t).sum(), t)
    at_one = f(torch.ones((), dtype=torch.float64)).item()
    if not abs(at_one) <= 1e-9:
        raise ValueError(f"generator of {name!r}: f(1) = {at_one} must be 0; subtract it")
    if not torch.allclose(slope, expected, rtol=1e-6, atol=1e-9):
        worst = int((slope - expected).abs().nan_to_num(math.inf).argmax())
        raise ValueError(
            f"generator_derivative of {name!r} is not the derivative of its generator: at t = {t[worst].item():.4g} "
            f"it is {slope[worst].item():.6g}, autograd of the generator gives {expected[worst].item():.6g}"
        )
    if not bool((slope.diff() > 0).all()):
        raise ValueError(f"generator_derivative of {name!r} must increase strictly: f must be strictly convex")


def usable_range(f: Function, df: Function) -> tuple[float, float]:
    """(low, high) of u in which f'(e^u) and e^u f'(e^u) - f(e^u) fit float32 and the second keeps its derivative.

    Its derivative is e^u d/du f'(e^u), which the difference of two large terms loses to cancellation for large u.
    """
    step = 0.25
    u = torch.arange(-EXP_LIMIT, EXP_LIMIT + step, step, dtype=torch.float64).requires_grad_()
    t = u.exp()
    link = df(t)
    composite = t * link - f(t)
    (slope,) = torch.autograd.grad(link.sum(), u, retain_graph=True)
    (composite_slope,) = torch.autograd.grad(composite.sum(), u)
    expected = t.detach() * slope
    usable = (composite_slope - expected).abs() <= 1e-3 * expected.abs() + 1e-6
    for quantity in (link.detach(), composite.detach(), slope, expected):
        usable &= quantity.abs() <= math.exp(EXP_LIMIT)
    broken = u[~usable].tolist()
    low = max((x + step for x in broken if x < 0), default=-EXP_LIMIT)
    high = min((x - step for x in broken if x > 0), default=EXP_LIMIT)
    return low, high


def limit_at(function: Function, direction: int) -> float:
    """The limit for t -> 0 (direction -1) or t -> inf (+1), +inf unless it has settled between e^150 and e^300."""
    u = torch.tensor([_FAR / 2, _FAR], dtype=torch.float64) * direction
    near, far = function(u.exp()).tolist()
    return far if math.isfinite(far) and abs(far - near) <= 1e-6 * max(1.0, abs(far)) else math.inf


def numeric_conjugate(f: Function, df: Function, slope_at_infinity: float, s: torch.Tensor) -> torch.Tensor:
    """f*(s) = sup_t t s - f(t), at f'(t) = s, which bisection finds; +inf from f'(inf) on. No gradient."""
    target = s.detach().double()
    left, right = torch.full_like(target, -_FAR), torch.full_like(target, _FAR)
    for _ in range(60):  # 600 / 2^60 is below float64's spacing
        middle = (left + right) / 2
        rising = df(middle.exp()) < target
        left, right = torch.where(rising, middle, left), torch.where(rising, right, middle)
    t = left.exp()
    return torch.where(target >= slope_at_infinity, math.inf, target * t - f(t)).to(s.dtype)
