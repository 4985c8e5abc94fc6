"""The paper's theorems made executable: one prompt, a finite set of Y responses, everything exact. Give it float64.

A policy, and each of D+ and D-, is a vector of probabilities over the responses, shape (Y,) or (..., Y): leading
dimensions are independent prompts. `docs/theory.md` shows what comes out; tests/test_theory.py and
tests/test_theory_improvement.py prove it.

Reference: Haldar et al., arXiv 2602.05946, Definition 4.1 and Theorems 4.2 to 4.4, as third parties read them in its
source (docs/assumptions.md).
"""

from collections.abc import Callable

import torch

from fgrpo_plugin.divergences import Divergence

__all__ = [
    "alignment_sides",
    "expected_reward",
    "fit_policy",
    "grpo_fixed_point",
    "grpo_iterate",
    "iterate",
    "mass_below_mean",
    "optimal_reward",
    "population_f_grpo",
    "population_fdo",
]

Table = torch.Tensor

# g^-1(f'(t)) of the variational links, by hand from the table of divergences; test_theory checks g of it against f'.
_VARIATIONAL_OPTIMUM: dict[str, Callable[[Table], Table]] = {
    "kl": lambda t: 1 + t.log(),
    "reverse_kl": torch.log,
    "pearson": lambda t: 2 * (t - 1),
    "pearson_restricted": lambda t: 2 * (t - 1),
    "neyman": lambda t: 2 * t.log(),
    "squared_hellinger": lambda t: t.log() / 2,
    "jensen_shannon": torch.log,
    "gan": torch.log,
    "total_variation": lambda t: torch.where(t == 1, 0.0, torch.inf * (t - 1)),  # a limit: only the sign counts
}


def expected_reward(policy: Table, rewards: Table) -> Table:
    """mu = E_pi R: (..., Y), (..., Y) -> (...)."""
    return (policy * rewards).sum(-1)


def alignment_sides(policy: Table, rewards: Table, eps: float = 0.0, mode: str = "softmax_is") -> tuple[Table, Table]:
    """Return D+ and D- of a policy: what its above-average and its below-average responses are samples of.

        D+_t(y) ~ (R(y) - mu_t)_+ exp(R(y)),    D-_t(y) ~ (mu_t - R(y))_+ exp(-R(y)),    mu_t = E_{pi_t} R

    With eps > 0 the smoothed pair (1 - eps) D+- + eps pi_t, whose supports overlap. Where no response lies above mu_t,
    or none below it, that side is pi_t itself.

    Args:
        policy: pi_t, (..., Y).
        rewards: R, (..., Y).
        eps: in [0, 1).
        mode: of the group weights. "softmax_is" is the above; "softmax" leaves the factor pi_t(y) in, which sampling
            brings, and "none" leaves the exponential out too.

    Returns:
        D+ and D-, (..., Y).

    Raises:
        ValueError: eps out of range or an unknown mode.

    Reference:
        arXiv 2602.05946, Definition 4.1 (counting measure); the smoothing is ours.
    """
    if not 0 <= eps < 1:
        raise ValueError(f"eps={eps} must lie in [0, 1)")
    distance = _above_mean(policy, rewards).abs()
    sides = []
    for weight in _side_weights(policy, rewards, mode):
        density = distance * weight  # Definition 4.1: the positive part is the |a| of the loss
        mass = density.sum(-1, keepdim=True)
        density = torch.where(mass > 0, density / torch.where(mass > 0, mass, 1.0), policy)
        sides.append((1 - eps) * density + eps * policy)
    return sides[0], sides[1]


def _side_weights(policy: Table, rewards: Table, mode: str) -> list[Table]:
    """Return the normalised weights of both sides' responses, with what sampling from the policy brings.

    exp(+-R) for "softmax_is", pi exp(+-R) for "softmax", pi for "none", over its sum on the side; 0 off the side, and
    everywhere where the side is empty.
    """
    if mode not in ("none", "softmax", "softmax_is"):
        raise ValueError(f"unknown mode={mode!r}; choose 'none', 'softmax' or 'softmax_is'")
    centred = _above_mean(policy, rewards)
    found = []
    for side, sign in ((centred > 0, 1.0), (centred < 0, -1.0)):
        score = sign * rewards if mode != "none" else torch.zeros_like(rewards)
        score = score if mode == "softmax_is" else score + policy.log()
        score = torch.where(side, score, -torch.inf)
        empty = (score == -torch.inf).all(-1, keepdim=True)
        found.append(torch.where(empty, 0.0, torch.where(empty, 0.0, score).softmax(-1)))
    return found


def optimal_reward(aligned: Table, unaligned: Table, divergence: Divergence) -> Table:
    """r* = g^-1(f'(dD+/dD-)), the minimiser of `population_fdo` over all tables.

    +-inf where the ratio of the densities is infinite or 0 and r* is that limit. Where both densities vanish every
    reward is as good, and -inf is returned: such a response is not above average.
    """
    both_vanish = (aligned == 0) & (unaligned == 0)
    ratio = aligned / torch.where(both_vanish, 1.0, unaligned)
    density_ratio = divergence.link_name == "density_ratio"  # g(u) = f'(e^u)
    best = ratio.log() if density_ratio else _VARIATIONAL_OPTIMUM[divergence.name](ratio)
    return torch.where(both_vanish, -torch.inf, best)


def population_fdo(reward: Table, aligned: Table, unaligned: Table, divergence: Divergence) -> Table:
    """L_FDO of infinitely many rows: - E_{D+} g(r) + E_{D-} f*(g(r)); (..., Y) -> (...)."""
    gain = _expectation(aligned, divergence.link(reward))
    return -gain + _expectation(unaligned, divergence.conjugate_of_link(reward))


def population_f_grpo(
    reward: Table, policy: Table, rewards: Table, divergence: Divergence, *, mode: str = "softmax_is"
) -> Table:
    """L_fGRPO of one infinitely large group sampled from `policy`, advantages normalised by the standard deviation.

        E_{y ~ pi} |a| w ( -g(r) if a > 0 ;  f*(g(r)) if a < 0 )

    w, of mean 1 on its side, tends to P(side) q(y) / pi(y), q the self-normalised weights of `alignment_sides` without
    the positive part. So this is - m+ E_{D+} g(r) + m- E_{D-} f*(g(r)) with m+- = P(side) sum_y q |a|.
    0 where all rewards that the policy meets are equal.

    Args:
        reward: the implicit reward r, (..., Y); gradient flows.
        policy: pi = pi_old, (..., Y).
        rewards: R, (..., Y).
        divergence: supplies g and f*(g).
        mode: of the group weights: "none", "softmax" or "softmax_is".

    Returns:
        (...).

    Raises:
        ValueError: an unknown mode.
    """
    centred = _above_mean(policy, rewards)
    sigma = (policy * centred.square()).sum(-1, keepdim=True).sqrt()
    advantage = torch.where(sigma > 0, centred / torch.where(sigma > 0, sigma, 1.0), 0.0)
    above, below = (
        (policy * side).sum(-1, keepdim=True) * advantage.abs() * weight
        for side, weight in zip((advantage > 0, advantage < 0), _side_weights(policy, rewards, mode), strict=True)
    )
    return population_fdo(reward, above, below, divergence)


def iterate(reference: Table, aligned: Table, unaligned: Table, divergence: Divergence, beta: float) -> Table:
    """pi_{t+1} ~ pi_ref exp(r* / beta), r* = g^-1(f'(dD+_t/dD-_t)); Theorem 2.

    Where r* is infinite anywhere this is the limit: pi_ref restricted to those responses (for disjoint sides, to the
    above-average set).
    """
    best = optimal_reward(aligned, unaligned, divergence)
    infinite = best == torch.inf
    limited = infinite.any(-1, keepdim=True)
    log_weight = torch.where(limited, torch.where(infinite, 0.0, -torch.inf), best / beta)
    return (reference.log() + log_weight).softmax(-1)


def grpo_iterate(
    reference: Table, policy: Table, rewards: Table, beta: float, *, normalize_by_std: bool = True
) -> Table:
    """Return the policy to which unclipped GRPO with a KL penalty moves from pi_t.

        pi ~ pi_ref exp((R - mu_t) / (beta sigma_t)),    the maximiser of E_pi a - beta KL(pi || pi_ref)

    sigma_t is the standard deviation of R under pi_t, or 1 without `normalize_by_std`.
    """
    centred = _above_mean(policy, rewards)
    sigma = (policy * centred.square()).sum(-1, keepdim=True).sqrt() if normalize_by_std else torch.ones(())
    return (reference.log() + centred / (beta * sigma.clamp(min=1e-12))).softmax(-1)


def grpo_fixed_point(
    reference: Table, policy: Table, rewards: Table, beta: float, *, normalize_by_std: bool = True
) -> Table:
    """The policy that `grpo_iterate` leaves alone, found from `policy` by damped iteration (the plain one may cycle).

    Raises:
        RuntimeError: it is not reached to 1e-9 in 3000 iterations.
    """
    for _ in range(3000):
        target = grpo_iterate(reference, policy, rewards, beta, normalize_by_std=normalize_by_std)
        policy = 0.5 * policy + 0.5 * target
    if not bool(((target - policy).abs() <= 1e-9).all()):
        raise RuntimeError(f"no fixed point: the last step moved a probability by {(target - policy).abs().max():.1e}")
    return policy


def mass_below_mean(policy: Table, rewards: Table) -> Table:
    """Probability of responses whose reward is below E_pi R: (..., Y), (..., Y) -> (...)."""
    return (policy * (_above_mean(policy, rewards) < 0)).sum(-1)


def fit_policy(
    reference: Table, beta: float, loss: Callable[[Table], Table], *, free_constant: bool = False, steps: int = 1000
) -> Table:
    """The policy that minimises loss(r), r = beta log(pi / pi_ref), by L-BFGS on its logits from pi_ref.

    A line search ends where the loss changes in its last digit alone, which in a flat valley is short of the minimum;
    Newton's steps go on from there, and the point with the smallest gradient is taken.

    Args:
        reference: pi_ref, (Y,), positive.
        beta: > 0.
        loss: a table of rewards (Y,) -> scalar.
        free_constant: add a constant of the prompt to r and minimise over it too. Without it r is bound to
            sum_y pi_ref(y) exp(r(y) / beta) = 1.
        steps: at most so many iterations.

    Returns:
        pi, (Y,).
    """
    size = reference.shape[-1]
    free = torch.cat([reference.log(), reference.new_zeros(int(free_constant))]).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [free],
        max_iter=steps,
        tolerance_grad=1e-12,
        tolerance_change=0.0,
        history_size=50,
        line_search_fn="strong_wolfe",
    )

    def value(point: torch.Tensor) -> torch.Tensor:
        return loss(beta * (point[:size].log_softmax(-1) - reference.log()) + point[size:].sum())

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        result = value(free)
        result.backward()
        return result

    def gradient(point: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(value(point.requires_grad_()), point)[0]

    optimizer.step(closure)
    points, slopes = [free.detach()], [gradient(free.detach())]
    for _ in range(10):
        # Logits have a direction along which nothing changes: the least-norm step.
        curvature = torch.autograd.functional.hessian(value, points[-1])
        points.append((points[-1] - torch.linalg.pinv(curvature, hermitian=True) @ slopes[-1]).detach())
        slopes.append(gradient(points[-1]))
        if not bool(slopes[-1].isfinite().all()):
            break
    best = min(range(len(points)), key=lambda at: slopes[at].norm().nan_to_num(torch.inf).item())
    return points[best][:size].detach().softmax(-1)


def _above_mean(policy: Table, rewards: Table) -> Table:
    """R(y) - mu as a sum of differences, so that it is exactly 0, or of the right sign, where a policy is peaked."""
    return (policy.unsqueeze(-2) * (rewards.unsqueeze(-1) - rewards.unsqueeze(-2))).sum(-1)


def _expectation(density: Table, values: Table) -> Table:
    """sum_y density(y) values(y), where no value counts that has no density: it may be infinite."""
    return (density * torch.where(density > 0, values, 0.0)).sum(-1)
