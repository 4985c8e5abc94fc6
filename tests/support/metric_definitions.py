"""Every logged metric once more, as loops over raw responses, and an update of verl's loss that logs them."""

import math
import statistics
from functools import partial

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from fgrpo_plugin.advantages import group_weights
from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.contract import PREFIX
from fgrpo_plugin.host.driver.joining import as_queue_rows, preference_numbers
from fgrpo_plugin.host.driver.rows import on_policy_fields, row_numbers
from fgrpo_plugin.host.metrics import divide_sums
from fgrpo_plugin.host.preference_metrics import DISTANCE_EDGES
from fgrpo_plugin.host.worker.loss_section import FDivergencePolicyLossConfig
from fgrpo_plugin.preference.tokens import TokenRow

LENGTHS = [3, 5, 1, 6, 2, 4, 6, 3, 5, 2, 1, 4, 3, 2, 5, 1, 6, 4, 2]
ON, OFF = 12, 7  # rows
ASKED = 16  # responses: of 4 prompts, of which one has none
UIDS = ["a"] * 4 + ["b"] * 4 + ["c"] * 3 + ["pad"]  # c is flat; the last row is what verl fills a mini-batch with
REWARDS = [0.0, 1.0, 0.25, 1.0, 0.5, -1.0, 0.0, 2.0, 1.0, 1.0, 1.0, 0.0]
DESIRABLE = [True, False, True, True, False, True, False]
EMPTY, PARTLY = 6, 3  # rows whose tokens, or whose last token, are masked
# Rank by rank, micro-batch by micro-batch: rows of one kind, of both kinds, and few or many.
SPLITS = [[[0, 12, 1, 13], [2, 14, 3], [15]], [[4], [5, 6, 7, 8, 16, 9, 10], [11, 17, 18]]]
ON_SPLITS = [[[0, 1], [2, 3, 10]], [[4], [5, 6, 7, 8, 9, 11]]]

FORMULAS = {  # name: (g, f*(g), what a reported estimate adds)
    "pearson": (lambda v: v, lambda v: v + v * v / 4, 0.0),
    "kl": (lambda v: v, lambda v: math.exp(v - 1), 0.0),
    "gan": (lambda v: -math.log1p(math.exp(-v)), lambda v: math.log1p(math.exp(v)), 2 * math.log(2)),
    "squared_hellinger": (lambda v: 1 - math.exp(-v), lambda v: math.exp(v) - 1, 0.0),
}
SETTINGS = {
    "defaults": {"divergence": "pearson"},
    "gan, clipped, capped": {
        "divergence": "gan",
        "implicit_reward_clip": 0.35,
        "weight_cap": 1.1,
        "weight_temperature": 0.5,
    },
    "paper, per-token mean": {"preset": "paper", "divergence": "kl", "level": "sequence_mean", "gamma": 0.2},
    "released, own gammas": {"preset": "released", "divergence": "squared_hellinger", "preference_gamma": 0.7},
    "token, clipped": {"divergence": "pearson", "level": "token", "implicit_reward_clip": 0.2},
    "softmax": {"divergence": "kl", "weighting": "softmax", "scale": [3.0, 0.5]},
}
BETA = 0.3


def nested(values):
    return torch.nested.as_nested_tensor(list(values), layout=torch.jagged)


class Update:
    """Raw responses, the rows that driver and queue make of them, and what verl reports of one update on them."""

    def __init__(self, name, lam, minibatch=None, **more):
        self.settings = FDivergenceConfig(beta=BETA, lam=lam, **SETTINGS[name], **more)
        self.lam, self.off = lam, OFF if lam else 0
        draw = torch.Generator().manual_seed(1)
        total = ON + self.off
        self.lengths = LENGTHS[:total]
        self.log_prob = [(-2 * torch.rand(n + 1, generator=draw)).requires_grad_() for n in self.lengths]  # prompt of 1
        self.ref = [-2 * torch.rand(n, generator=draw) for n in self.lengths]
        self.rollout = [-2 * torch.rand(n, generator=draw) for n in self.lengths]
        self.ref[1] -= 20.0  # far from the reference: beyond the clips
        if self.off:  # beyond the outer bins of distances, on the side where the losses stay small
            self.ref[12] -= 80.0
            self.ref[16] += 40.0
        self.mask = [[1] * n for n in self.lengths]
        self.mask[PARTLY][-1] = 0
        for row in (EMPTY, ON - 1):
            self.mask[row] = [0] * self.lengths[row]
        self.minibatch = torch.zeros(ON, dtype=torch.int64) if minibatch is None else torch.tensor(minibatch)
        numbers, self.driver = row_numbers(
            rewards=torch.tensor(REWARDS),
            uids=np.array(UIDS, dtype=object),
            response_mask=nested([torch.tensor(m) for m in self.mask[:ON]]),
            old_log_prob=nested(self.rollout[:ON]),
            minibatch=self.minibatch,
            padding=torch.arange(ON) == ON - 1,
            settings=self.settings,
            normalize_by_std=True,
            asked=ASKED,
        )
        ids = [TokenRow([1], [2] * n, True, None, "") for n in self.lengths]
        fields = as_queue_rows(ids[:ON], self.ref[:ON]) | numbers | on_policy_fields(ON, lam)
        fields["response_mask"] = nested([torch.tensor(m) for m in self.mask[:ON]])
        self.rows = [{key: values[i] for key, values in fields.items()} for i in range(ON)]
        if self.off:
            rows = [TokenRow([1], [2] * n, d, None, "") for n, d in zip(LENGTHS[ON:], DESIRABLE, strict=True)]
            fields = as_queue_rows(rows, self.ref[ON:]) | preference_numbers(rows, self.settings, lam)
            self.rows += [{key: values[i] for key, values in fields.items()} for i in range(OFF)]
        for row, rollout in zip(self.rows, self.rollout, strict=True):
            row["old_log_probs"] = rollout

    def reported(self, splits, compare_rollout=True):
        """What the driver logs of mini-batches [[rank [micro-batch [row]]]]; the gradient stays in `log_prob`."""
        from verl.utils.metric import Metric, reduce_metrics
        from verl.utils.py_functional import append_to_dict

        step: dict = {}
        for minibatch in splits:
            ranks: dict = {}
            for rank in minibatch:
                of_rank: dict = {}
                for micro_batch in rank:
                    append_to_dict(of_rank, self._worker(micro_batch, len(minibatch)))
                for key, value in of_rank.items():
                    ranks.setdefault(key, []).append(value)
            append_to_dict(step, {key: Metric.aggregate_dp(values) for key, values in ranks.items()})
        metrics = reduce_metrics(step)
        ours = divide_sums(metrics, self.settings, lam=self.lam, compare_rollout=compare_rollout)
        assert not any(key.startswith(PREFIX) for key in metrics)  # no sum is left to be logged
        return ours | self.driver

    def _worker(self, select, dp_size):
        from verl.utils import tensordict_utils as tu
        from verl.workers.config import FSDPActorConfig
        from verl.workers.utils import losses

        mode = "f_hal" if self.off else "f_grpo"
        policy_loss = FDivergencePolicyLossConfig(loss_mode=mode, f_divergence=self.settings)
        config = FSDPActorConfig(
            strategy="fsdp2",
            ppo_micro_batch_size_per_gpu=4,
            rollout_n=4,
            policy_loss=policy_loss,
            use_torch_compile=False,
        )
        rows = [self.rows[i] for i in select]
        fields = {
            key: nested([row[key] for row in rows]) if value.dim() else torch.stack([row[key] for row in rows])
            for key, value in rows[0].items()
        }
        data = TensorDict(fields, batch_size=len(select))
        tu.assign_non_tensor(data, dp_size=dp_size, batch_num_tokens=10**6, global_batch_size=10**6)
        values = [self.log_prob[i] for i in select]
        offsets = torch.tensor([0, *np.cumsum([len(row) for row in values])])
        output = {"log_probs": torch.nested.nested_tensor_from_jagged(torch.cat(values), offsets=offsets)}
        loss, metrics = partial(losses.ppo_loss, config=config)(model_output=output, data=data)
        (loss / dp_size).backward()  # verl's engines average over ranks
        return {key: value for key, value in metrics.items() if key.startswith(PREFIX)}

    # One response at a time, in Python floats.

    def tokens(self, i, values):
        shift = len(values[i]) - self.lengths[i]  # the policy's log-prob of token t stands one place before it
        return [values[i][t + (shift - 1 if shift else 0)].item() for t in range(self.lengths[i]) if self.mask[i][t]]

    def token_ratios(self, i):
        return [a - b for a, b in zip(self.tokens(i, self.log_prob), self.tokens(i, self.ref), strict=True)]

    def rewards(self, i):
        """(r, clipped) of each thing that counts: one a response, at level token one a token."""
        ratios = self.token_ratios(i)
        if not ratios:
            return []
        found = {"token": ratios, "sequence": [sum(ratios)], "sequence_mean": [statistics.fmean(ratios)]}
        limit = self.settings.implicit_reward_clip or math.inf
        values = [BETA * value for value in found[self.settings.level]]
        return [(min(max(value, -limit), limit), abs(value) > limit) for value in values]

    def reward(self, i):
        return statistics.fmean(value for value, _ in self.rewards(i))

    def slope(self, i):
        """sum over a response's tokens of |dL/d log pi|, or at level sequence that of any of its tokens: autograd."""
        sizes = [abs(self.log_prob[i].grad[t].item()) for t in range(self.lengths[i]) if self.mask[i][t]]
        return (statistics.fmean(sizes) if self.settings.level == "sequence" else sum(sizes)) if sizes else 0.0

    def advantage(self, i):
        group = [REWARDS[j] for j in range(ON) if UIDS[j] == UIDS[i]]
        if max(group) == min(group):
            return 0.0
        return (REWARDS[i] - statistics.fmean(group)) / (statistics.stdev(group) + 1e-6)

    def weights(self):
        padded = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
        return group_weights(  # tests/test_advantages.py and tests/test_presets.py have its loops
            torch.tensor(REWARDS),
            UIDS,
            self.settings.weighting,
            padded(self.rollout[:ON]),
            padded([torch.tensor(mask) for mask in self.mask[:ON]]),
            self.settings.weight_cap,
            weight_temperature=self.settings.weight_temperature,
            old_log_prob_level=self.settings.weight_level,
            weight_scale=self.settings.weight_scale,
        ).tolist()

    def on_policy_definitions(self):
        g, conjugate, offset = FORMULAS[self.settings.divergence]
        counted = [i for i in range(ON) if any(self.mask[i])]
        a, w = [self.advantage(i) for i in range(ON)], self.weights()
        above, below = [i for i in counted if a[i] > 0], [i for i in counted if a[i] < 0]

        def loss(i):
            return sum(abs(a[i]) * w[i] * (-g(r) if a[i] > 0 else conjugate(r)) for r, _ in self.rewards(i) if a[i])

        units = sum(len(self.rewards(i)) for i in counted)
        mean = statistics.fmean
        aligned, unaligned = mean(map(self.reward, above)), mean(map(self.reward, below))
        weighed = sum(w[i] * g(self.reward(i)) for i in above) / sum(w[i] for i in above)
        weighed -= sum(w[i] * conjugate(self.reward(i)) for i in below) / sum(w[i] for i in below)
        used = [w[i] for i in (*above, *below)]
        cap = self.settings.weight_cap or math.inf
        return {
            PREFIX + "implicit_reward": mean(map(self.reward, counted)),
            PREFIX + "implicit_reward_aligned": aligned,
            PREFIX + "implicit_reward_unaligned": unaligned,
            PREFIX + "implicit_reward_margin": aligned - unaligned,
            PREFIX + "divergence_estimate": weighed + offset,
            PREFIX + "on_policy_loss": sum(map(loss, counted)) / units,
            PREFIX + "clipped_share": mean(any(clip for _, clip in self.rewards(i)) for i in counted),
            PREFIX + "reference_gap": mean(abs(gap) for i in counted for gap in self.token_ratios(i)),
            PREFIX + "absent_share": (ASKED - len(counted)) / ASKED,
            PREFIX + "zero_advantage_share": mean(a[i] == 0 for i in counted),
            PREFIX + "aligned_share": mean(a[i] > 0 for i in counted),
            PREFIX + "weight_effective_sample_share": sum(used) ** 2 / sum(x**2 for x in used) / len(used),
            PREFIX + "weight_capped_share": mean(x > cap * (1 - 1e-5) for x in used),
            **self.rollout_definitions(counted),
        }

    def rollout_definitions(self, rows):
        pairs = [(self.tokens(i, self.log_prob), self.tokens(i, self.rollout)) for i in rows]
        actor, rollout = (np.array([value for pair in pairs for value in pair[side]]) for side in (0, 1))
        difference = np.abs(np.exp(actor) - np.exp(rollout))
        return {
            PREFIX + "rollout_gap": np.abs(actor - rollout).mean(),
            "training/rollout_probs_diff_mean": difference.mean(),
            "training/rollout_probs_diff_std": difference.std(),
            "training/rollout_actor_probs_pearson_corr": np.corrcoef(np.exp(actor), np.exp(rollout))[0, 1],
        }

    def preference_definitions(self):
        g, conjugate, offset = FORMULAS[self.settings.divergence]
        mean, rows = statistics.fmean, range(ON, ON + OFF)
        above, below = ([i for i in rows if DESIRABLE[i - ON] == side] for side in (True, False))
        losses = (
            [-g(r) for i in above for r, _ in self.rewards(i)],
            [conjugate(r) for i in below for r, _ in self.rewards(i)],
        )
        desirable, undesirable = mean(map(self.reward, above)), mean(map(self.reward, below))
        right = [self.reward(i) > 0 for i in above] + [self.reward(i) < 0 for i in below]
        estimate = mean(g(self.reward(i)) for i in above) - mean(conjugate(self.reward(i)) for i in below)
        found = {
            "preference_loss": mean(losses[0]) + mean(losses[1]),
            "preference_divergence_estimate": estimate + offset,
            "preference_implicit_reward_desirable": desirable,
            "preference_implicit_reward_undesirable": undesirable,
            "preference_implicit_reward_margin": desirable - undesirable,
            "preference_accuracy": mean(right),
            "preference_desirable_share": len(above) / OFF,
            "preference_clipped_share": mean(any(clip for _, clip in self.rewards(i)) for i in rows),
        }
        for name, side in (("desirable", above), ("undesirable", below)):
            distance = [sum(self.token_ratios(i)) for i in side]
            found[f"preference_distance_{name}"] = mean(distance)
            for quantile, share in (("p05", 0.05), ("p95", 0.95)):
                found[f"preference_distance_{name}_{quantile}"] = _by_bins(distance, share)
        return {PREFIX + name: value for name, value in found.items()}

    def slope_definitions(self):
        on, off = (sum(map(self.slope, rows)) for rows in (range(ON), range(ON, ON + self.off)))
        share = {0.0: 1.0, 1.0: 0.0}.get(self.lam, on / (on + off))
        return {
            PREFIX + "on_policy_slope": on,
            PREFIX + "preference_slope": off,
            PREFIX + "on_policy_slope_share": share,
        }


def _by_bins(values, share):
    """The quantile of a histogram over DISTANCE_EDGES, linear inside a bin; open bins answer with their edge."""
    counts = np.histogram(values, [-np.inf, *DISTANCE_EDGES, np.inf])[0]
    place = int(np.searchsorted(np.cumsum(counts), share * len(values)))
    if place in (0, len(DISTANCE_EDGES)):
        return DISTANCE_EDGES[min(place, len(DISTANCE_EDGES) - 1)]
    before = counts[:place].sum()
    edges = DISTANCE_EDGES[place - 1 : place + 1]
    return float(np.interp((share * len(values) - before) / counts[place], [0, 1], edges))


def check(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), rel=2e-5, abs=2e-6), name
