"""Every number that f-GRPO and f-HAL log: what it is, its unit, what is healthy, what to do otherwise.

docs/metrics.md is made from this table. tests/host/test_metrics.py has each definition as a loop over raw responses,
and tests hold what a run logs and this table against each other.
"""

from dataclasses import dataclass

PREFIX = "actor/f_divergence/"
VALIDATION = "val-preference/"

NONE_KNOWN = "none known"
VERL_FAQ = "verl's FAQ"
DEFINITION = "by definition"


@dataclass(frozen=True)
class LoggedMetric:
    """One logged number."""

    name: str
    formula: str
    """In the words of docs/metrics.md; sums and means run over the responses of a step that have a token."""
    unit: str
    healthy: str
    source: str
    """Of the healthy range: measured here (where), verl's FAQ, by definition, or none known."""
    outside: str
    """What to look at or to do outside that range, or what the number is for where no range is known."""
    f_hal_only: bool = False
    """f-GRPO does not log it."""


def _on(
    name: str, formula: str, unit: str, healthy: str, source: str, outside: str, f_hal_only: bool = False
) -> LoggedMetric:
    return LoggedMetric(PREFIX + name, formula, unit, healthy, source, outside, f_hal_only)


def _off(name: str, formula: str, unit: str, healthy: str, source: str, outside: str) -> LoggedMetric:
    return _on(name, formula, unit, healthy, source, outside, f_hal_only=True)


METRICS: tuple[LoggedMetric, ...] = (
    _on(
        "on_policy_slope",
        "sum of abs(dL/dr) (beta + gamma) over on-policy responses, L the minimised loss: lambda, s_all, s_on and the "
        "denominator are in it; at level token summed over tokens",
        "1/nat",
        "above 0",
        DEFINITION,
        "0: lambda is 1, no group has a signal (zero_advantage_share), every response is clipped (clipped_share), or "
        "responses at the mean take all weight",
    ),
    _on(
        "preference_slope",
        "the same over preference rows, with preference_gamma; 0 for f-GRPO",
        "1/nat",
        "above 0 for f-HAL with lambda > 0",
        DEFINITION,
        "0: every preference row is clipped (preference_clipped_share)",
    ),
    _on(
        "on_policy_slope_share",
        "on_policy_slope / (on_policy_slope + preference_slope); 1 at lambda 0, 0 at lambda 1; elsewhere not logged "
        "where both are 0",
        "share",
        NONE_KNOWN,
        NONE_KNOWN,
        "what to look at when choosing lambda: [lambda.md](lambda.md) says how to get another share",
    ),
    _on(
        "on_policy_loss",
        "L_fGRPO, without scales and lambda",
        "f's unit",
        NONE_KNOWN,
        NONE_KNOWN,
        "not comparable between divergences; use it to see that a run repeats another",
    ),
    _on(
        "divergence_estimate",
        "sum(w g(r)) / sum(w) over positive advantages - sum(w f*(g(r))) / sum(w) over negative ones, plus 2 log 2 "
        "for gan",
        "f's unit",
        "rises; the first step has g(0) - f*(g(0)): 0, but for variational kl, which has -1/e",
        DEFINITION,
        "falls: look at implicit_reward_margin and the learning rate",
    ),
    _on(
        "implicit_reward",
        "mean r; r of a response is the clipped beta log(pi/pi_ref), at level token the mean of its tokens'",
        "beta nats",
        NONE_KNOWN,
        NONE_KNOWN,
        "drifts down where all responses become less likely than under the reference",
    ),
    _on(
        "implicit_reward_aligned",
        "mean r of responses with a positive advantage",
        "beta nats",
        NONE_KNOWN,
        NONE_KNOWN,
        "falls together with implicit_reward_unaligned: the policy runs away from both; a smaller learning rate or a "
        "larger beta",
    ),
    _on(
        "implicit_reward_unaligned",
        "mean r of responses with a negative advantage",
        "beta nats",
        NONE_KNOWN,
        NONE_KNOWN,
        "see implicit_reward_aligned",
    ),
    _on(
        "implicit_reward_margin",
        "implicit_reward_aligned - implicit_reward_unaligned",
        "beta nats",
        "0 in the first step",
        DEFINITION,
        "negative for long: more responses a prompt, or a smaller learning rate",
    ),
    _on(
        "clipped_share",
        "share of responses whose r was outside implicit_reward_clip or the divergence's range (at level token: "
        "that of any token)",
        "share",
        "0",
        DEFINITION,
        "such responses have no gradient: a smaller beta, level sequence_mean, or another divergence",
    ),
    _on(
        "reference_gap",
        "mean of abs(log pi - log pi_ref) over response tokens",
        "nats",
        "0 in the first step",
        DEFINITION,
        "grows with training; fast growth with a falling reward: raise beta or lower the learning rate",
    ),
    _on(
        "zero_advantage_share",
        "share of responses with advantage 0 (their group's rewards are all equal)",
        "share",
        "below 1",
        DEFINITION,
        "1: nothing is learned on-policy; easier or harder prompts, more responses a prompt, or verl's filter_groups",
    ),
    _on(
        "aligned_share",
        "share of responses with a positive advantage",
        "share",
        "between 0 and 1",
        DEFINITION,
        "near 0 or 1 - zero_advantage_share: one side has few responses, and each of them weighs much",
    ),
    _on(
        "weight_effective_sample_share",
        "(sum w)^2 / (n sum w^2) over the n responses with an advantage other than 0; 0 where no response has weight",
        "share",
        "1 with weighting=none",
        DEFINITION,
        "near one response a group: weight_level=sequence does that, in favour of the longest response; "
        "weight_level=token_mean, with weight_scale=side also weight_cap",
    ),
    _on(
        "weight_capped_share",
        "share of responses with an advantage other than 0 whose weight is weight_cap",
        "share",
        "0 without weight_cap",
        DEFINITION,
        "near 1: the cap leaves nothing of the weights",
    ),
    _on(
        "rollout_gap",
        "mean of abs(log pi_actor - log pi_rollout) over tokens of the first mini-batch, with one epoch",
        "nats",
        "below 0.01 in float32",
        "measured here: `tests/e2e/test_host.py` asserts it",
        "see training/rollout_probs_diff_mean",
    ),
    LoggedMetric(
        "training/rollout_probs_diff_mean",
        "mean of abs(pi_actor - pi_rollout) over tokens of the first mini-batch, with one epoch",
        "probability",
        "below 0.005; above 0.01 is a precision problem",
        VERL_FAQ,
        "stale weights in the rollout engine, or another precision there: rollout.dtype, LoRA, the weight transfer",
    ),
    LoggedMetric(
        "training/rollout_probs_diff_std",
        "standard deviation of the same",
        "probability",
        NONE_KNOWN,
        NONE_KNOWN,
        "large with a small mean: few tokens differ, look for special tokens and sampling settings",
    ),
    LoggedMetric(
        "training/rollout_actor_probs_pearson_corr",
        "Pearson's correlation of pi_actor and pi_rollout over the same tokens; not logged where either is constant",
        "correlation",
        "above 0.999 in float32",
        "measured here: `tests/e2e/test_host.py` asserts it",
        "see training/rollout_probs_diff_mean",
    ),
    _off(
        "lam",
        "lambda of the step",
        "share",
        "as configured",
        DEFINITION,
        "a schedule gives another in each step",
    ),
    _off(
        "preference_share",
        "preference rows / rows of the update",
        "share",
        "as configured",
        DEFINITION,
        "set by data.preference.batch_size; it is cost, not weight: each half has its own denominator",
    ),
    _off(
        "preference_cache_hits",
        "share of the step's preference rows whose reference log-probs were in the cache",
        "share",
        "1 from the second epoch on",
        DEFINITION,
        "0 in every run of the same data: cache_dir is not kept between runs",
    ),
    _off(
        "preference_epochs",
        "rows drawn from the scarcer side / rows of that side",
        "passes",
        NONE_KNOWN,
        NONE_KNOWN,
        "many passes with a falling val-preference/accuracy: the preference data are memorised",
    ),
    _off(
        "preference_loss",
        "L_FDO, without scales and lambda: mean -g(r) of D+ plus mean f*(g(r)) of D-",
        "f's unit",
        "falls",
        "measured here: `tests/e2e/test_f_hal.py` asserts that four steps halve it",
        "rises: lambda is too small against the reward, see on_policy_slope_share",
    ),
    _off(
        "preference_divergence_estimate",
        "mean g(r) of D+ rows - mean f*(g(r)) of D- rows, plus 2 log 2 for gan: an estimate of D_f(D+, D-) from below; "
        "-L_FDO, but at level token, where r of a row is the mean of its tokens'",
        "f's unit",
        "rises; starts at 0, with variational kl at -1/e",
        DEFINITION,
        "see preference_loss",
    ),
    _off(
        "preference_implicit_reward_desirable",
        "mean r of D+ rows",
        "beta nats",
        NONE_KNOWN,
        NONE_KNOWN,
        "falls together with _undesirable: both sides become unlikely; lower the learning rate",
    ),
    _off(
        "preference_implicit_reward_undesirable",
        "mean r of D- rows",
        "beta nats",
        NONE_KNOWN,
        NONE_KNOWN,
        "see preference_implicit_reward_desirable",
    ),
    _off(
        "preference_implicit_reward_margin",
        "their difference",
        "beta nats",
        "0 in the first step; then above 0",
        DEFINITION,
        "see preference_loss",
    ),
    _off(
        "preference_accuracy",
        "share of preference rows with r > 0 on side D+ or r < 0 on side D-",
        "share",
        "above 0.5 after the first steps",
        NONE_KNOWN,
        "of training rows: compare with val-preference/accuracy",
    ),
    _off(
        "preference_desirable_share",
        "D+ rows / preference rows",
        "share",
        "0.5",
        DEFINITION,
        "the sampler draws as many of each side; a row without tokens is not counted",
    ),
    _off(
        "preference_clipped_share",
        "share of preference rows whose r was clipped, as clipped_share",
        "share",
        "0",
        DEFINITION,
        "see clipped_share; long responses that the reference finds very unlikely",
    ),
    *(
        _off(
            f"preference_distance_{side}{suffix}",
            f"{which} of log pi - log pi_ref, summed over a response, over {rows} rows{how}",
            "nats",
            NONE_KNOWN,
            NONE_KNOWN,
            "D+ far below 0: the policy leaves the preference data behind, whatever the margin says"
            if side == "desirable"
            else "falling is the aim; far below the D+ rows' it takes mass from neighbours, too",
        )
        for side, rows in (("desirable", "D+"), ("undesirable", "D-"))
        for suffix, which, how in (
            ("", "mean", ""),
            ("_p05", "5 % quantile", "; linear inside the bins of `DISTANCE_EDGES`"),
            ("_p95", "95 % quantile", "; linear inside the bins of `DISTANCE_EDGES`"),
        )
    ),
    LoggedMetric(
        VALIDATION + "accuracy",
        "share of held-out pairs whose D+ row has the larger r, a tie half; without pairs, of all couples of a D+ and "
        "a D- row",
        "share",
        "above 0.5",
        DEFINITION,
        "0.5 is chance (and what the reference has); falls while preference_accuracy rises: memorised",
        f_hal_only=True,
    ),
    LoggedMetric(
        VALIDATION + "implicit_reward_margin",
        "mean r of held-out D+ rows - mean r of D- rows, not clipped",
        "beta nats",
        "above 0",
        DEFINITION,
        "see val-preference/accuracy",
        f_hal_only=True,
    ),
    LoggedMetric(
        VALIDATION + "divergence_estimate",
        "mean g(r) of held-out D+ rows - mean f*(g(r)) of D- rows, plus 2 log 2 for gan",
        "f's unit",
        "rises; at the reference 0, with variational kl -1/e",
        DEFINITION,
        "see val-preference/accuracy",
        f_hal_only=True,
    ),
    LoggedMetric(
        "timing_s/join_preferences",
        "drawing preference rows, their reference log-probs, joining them to the batch",
        "seconds",
        "small against timing_s/update_actor once preference_cache_hits is 1",
        "measured here: `benchmarks/hybrid_cost.py`",
        "the reference log-probs of a first pass are in it; see preference_cache_hits",
        f_hal_only=True,
    ),
)
"""In the order of docs/metrics.md."""
