"""The paper's theorems made executable: one prompt, a finite set of Y responses, everything exact and in float64.

A policy, and each of D+ and D-, is a vector of probabilities over the responses, shape (Y,) or (..., Y): leading
dimensions are independent prompts. `docs/theory.md` shows what comes out; tests/test_theory.py proves it.

Reference: Haldar et al., arXiv 2602.05946. Where its exact form is not confirmed, the text says *assumed*.
"""

from collections.abc import Callable

import torch

from fgrpo_plugin.divergences import Divergence

__all__ = [
    "alignment_sides",
    "expected_reward",
    "fit_policy",
    "grpo_iterate",
    "iterate",
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
    """D+_t and D-_t of a policy pi_t: what its above-average and its below-average responses are samples of.

        D+_t(y) ~ 1{R(y) > mu_t} exp(R(y)),    D-_t(y) ~ 1{R(y) < mu_t} exp(-R(y)),    mu_t = E_{pi_t} R     (assumed)

    With eps > 0 the smoothed pair (1 - eps) D+- + eps pi_t, whose supports overlap. A side without a response (where a
    policy gives responses of one reward only) is pi_t itself.

    Args:
        policy: pi_t, (..., Y).
        rewards: R, (..., Y).
        eps: in [0, 1).
        mode: of the group weights. "softmax_is" is the above; "softmax" leaves the factor pi_t(y) in, which sampling
            brings, and "none" leaves the exponential out too.

    Returns:
        D+ and D-, (..., Y).
    """
    # R(y) - mu_t as a sum of differences, so that it is exactly 0, or of the right sign, where a policy is peaked.
    above_mean = (policy.unsqueeze(-2) * (rewards.unsqueeze(-1) - rewards.unsqueeze(-2))).sum(-1)
    sides = []
    for side, sign in ((above_mean > 0, 1.0), (above_mean < 0, -1.0)):
        density = torch.where(side, _log_density(policy, rewards, sign, mode), -torch.inf).softmax(-1)
        density = torch.where(density.isnan(), policy, density)
        sides.append((1 - eps) * density + eps * policy)
    return sides[0], sides[1]


def optimal_reward(aligned: Table, unaligned: Table, divergence: Divergence) -> Table:
    """r* = g^-1(f'(dD+/dD-)), the minimiser of `population_fdo` over all tables; Theorem 1.

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
    gain = (aligned * divergence.link(reward)).sum(-1)
    return -gain + (unaligned * divergence.conjugate_of_link(reward)).sum(-1)


def population_f_grpo(
    reward: Table, policy: Table, rewards: Table, divergence: Divergence, *, mode: str = "softmax_is"
) -> Table:
    """L_fGRPO of one infinitely large group sampled from `policy`, advantages normalised by the standard deviation.

        E_{y ~ pi} |a| w ( -g(r) if a > 0 ;  f*(g(r)) if a < 0 )
            = - P(a > 0) E_{D+} |a| g(r) + P(a < 0) E_{D-} |a| f*(g(r))

    since w, of mean 1 on its side, tends to P(side) D+-(y) / pi(y): it takes the mean over samples from pi to D+-.

    Args:
        reward: the implicit reward r, (..., Y); gradient flows.
        policy: pi = pi_old, (..., Y).
        rewards: R, (..., Y).
        divergence: supplies g and f*(g).
        mode: of the group weights: "none", "softmax" or "softmax_is".

    Returns:
        (...).
    """
    centred = rewards - expected_reward(policy, rewards).unsqueeze(-1)
    advantage = centred / (policy * centred.square()).sum(-1, keepdim=True).sqrt()
    loss = torch.zeros_like(reward)
    for side, sign, value in (
        (advantage > 0, 1.0, -divergence.link(reward)),
        (advantage < 0, -1.0, divergence.conjugate_of_link(reward)),
    ):
        density = torch.where(side, _log_density(policy, rewards, sign, mode), -torch.inf).softmax(-1)
        share = (policy * side).sum(-1, keepdim=True)
        loss = loss + torch.where(side, share * density * advantage.abs() * value, 0.0)
    return loss.sum(-1)


def iterate(reference: Table, aligned: Table, unaligned: Table, divergence: Divergence, beta: float) -> Table:
    """pi_{t+1} ~ pi_ref exp(r* / beta), r* = g^-1(f'(dD+_t/dD-_t)); Theorem 2.

    Where r* is infinite anywhere this is the limit: pi_ref restricted to those responses (for disjoint sides, to the
    above-average set).
    """
    best = optimal_reward(aligned, unaligned, divergence)
    infinite = best == torch.inf
    restricted = reference * infinite
    tilted = torch.where(infinite, 0.0, reference.log() + best / beta).softmax(-1)
    return torch.where(
        infinite.any(-1, keepdim=True), restricted / restricted.sum(-1, keepdim=True).clamp(min=1e-300), tilted
    )


def grpo_iterate(
    reference: Table, policy: Table, rewards: Table, beta: float, *, normalize_by_std: bool = True
) -> Table:
    """What unclipped GRPO with a KL penalty moves to from pi_t; where it returns pi_t, its fixed point. Theorem 4.

        pi ~ pi_ref exp((R - mu_t) / (beta sigma_t)),    the maximiser of E_pi a - beta KL(pi || pi_ref)

    sigma_t is the standard deviation of R under pi_t, or 1 without `normalize_by_std`.
    """
    centred = rewards - expected_reward(policy, rewards).unsqueeze(-1)
    sigma = (policy * centred.square()).sum(-1, keepdim=True).sqrt() if normalize_by_std else torch.ones(())
    return (reference.log() + centred / (beta * sigma.clamp(min=1e-12))).softmax(-1)


def _log_density(policy: Table, rewards: Table, sign: float, mode: str) -> Table:
    """log of pi(y) w(y), up to a constant, on the side of the given sign."""
    if mode == "none":
        return policy.log()
    return sign * rewards + (policy.log() if mode == "softmax" else 0.0)


def fit_policy(
    reference: Table, beta: float, loss: Callable[[Table], Table], *, free_constant: bool = False, steps: int = 1000
) -> Table:
    """The policy that minimises loss(r), r = beta log(pi / pi_ref), by L-BFGS on its logits from pi_ref.

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
    logits = reference.log().clone().requires_grad_()
    constant = torch.zeros((), dtype=reference.dtype, requires_grad=free_constant)
    optimizer = torch.optim.LBFGS(
        [logits, constant] if free_constant else [logits],
        max_iter=steps,
        tolerance_grad=1e-12,
        tolerance_change=0.0,
        history_size=50,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(beta * (logits.log_softmax(-1) - reference.log()) + constant)
        value.backward()
        return value

    optimizer.step(closure)
    return logits.detach().softmax(-1)
