"""The driver's part of f-HAL: where rows go, what they carry, and what is reported of them."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from fgrpo_plugin.config import FDivergenceConfig
from fgrpo_plugin.host.contract import ENGINE_FIELDS
from fgrpo_plugin.host.driver import joining
from fgrpo_plugin.host.driver.joining import as_queue_rows, deal, joined_order, preference_numbers, queue_blocks
from fgrpo_plugin.host.driver.preference_source import PreferenceSource, cache_key
from fgrpo_plugin.host.driver.rows import minibatch_of_row
from fgrpo_plugin.host.preference_metrics import held_out_metrics, quantile_of_bins
from fgrpo_plugin.preference.tokens import TokenRow


def rows(count=8, seed=0):
    """D+ and D- in turn, of very different lengths."""
    generator = np.random.default_rng(seed)
    return [
        TokenRow(
            [1] * int(generator.integers(1, 9)), [i + 3] * int(generator.integers(1, 90)), i % 2 == 0, f"p{i // 2}", ""
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_rank_gets_as_many_rows_of_each_side_and_couples_stay_together(ranks):
    data = rows(64)
    dealt = deal(data, ranks)
    assert Counter(id(row) for rank in dealt for row in rank) == Counter(map(id, data))
    tokens = []
    for rank in dealt:
        assert sum(row.desirable for row in rank) == len(rank) / 2 == 64 / ranks / 2
        assert all(a.pair == b.pair for a, b in zip(rank[::2], rank[1::2], strict=True))
        tokens.append(sum(len(row.prompt_ids + row.response_ids) for row in rank))
    assert max(tokens) < 1.1 * min(tokens)


def test_dealing_looks_at_every_row_a_bounded_number_of_times(monkeypatch):
    counted = []
    monkeypatch.setattr(joining, "_tokens", lambda couple: counted.append(1) or sum(len(row.ids) for row in couple))
    deal(rows(512), 4)
    assert len(counted) <= 512  # two a couple; it was the square of the rows


@pytest.mark.parametrize("ranks, minibatches, part, per_rank", [(1, 1, 6, 2), (2, 3, 4, 4), (4, 2, 2, 6), (2, 1, 5, 1)])
def test_every_mini_batch_of_every_rank_has_both_halves_where_the_host_trains_them(ranks, minibatches, part, per_rank):
    on_policy = ranks * minibatches * part
    order = joined_order(on_policy, minibatches, ranks, per_rank)
    on = [index for kind, index in order if kind == "on"]
    assert on == list(range(on_policy))  # the host's own order is kept
    assert sorted(index for kind, index in order if kind == "off") == list(range(ranks * minibatches * per_rank))
    joined = minibatch_of_row(len(order), len(order) // minibatches, ranks)
    alone = minibatch_of_row(on_policy, ranks * part, ranks)
    share = len(order) // ranks
    for place, (kind, index) in enumerate(order):
        rank, minibatch = place // share, int(joined[place])
        if kind == "on":
            assert minibatch == alone[index] and rank == index // (on_policy // ranks)
        else:  # drawn mini-batch by mini-batch, and dealt rank by rank
            assert (minibatch, rank) == divmod(index // per_rank, ranks)
    # Mixed: no half of a mini-batch lacks preference rows where there are two or more.
    if per_rank >= 2:
        first = [kind for kind, _ in order[: (part + per_rank) // 2 + 1]]
        assert {"on", "off"} == set(first)


def test_rows_are_in_the_hosts_form_and_invisible_to_its_terms():
    data = rows(4)
    reference = [-torch.rand(len(row.response_ids)) for row in data]
    fields = as_queue_rows(data, reference)
    for name in ENGINE_FIELDS:
        assert fields[name].is_nested, name
    for i, row in enumerate(data):
        assert fields["input_ids"][i].tolist() == row.prompt_ids + row.response_ids
        assert fields["position_ids"][i].tolist() == list(range(len(row.prompt_ids + row.response_ids)))
        assert fields["prompts"][i].tolist() == row.prompt_ids
        assert fields["responses"][i].tolist() == row.response_ids
        assert torch.equal(fields["ref_log_prob"][i], reference[i])
        for name in ("response_mask", "loss_mask"):
            assert fields[name][i].tolist() == [0] * len(row.response_ids)


def test_a_large_batch_is_put_into_the_queue_in_blocks_that_hold_every_row_once(monkeypatch):
    monkeypatch.setattr(joining, "BLOCK_ROWS", 3)
    data = rows(8)
    reference = [-torch.rand(row.response_length) for row in data]
    numbers = {"f_divergence_side": torch.arange(8.0)}
    seen = []
    for block, fields in queue_blocks(data, reference, numbers):
        for place, row in enumerate(data[block]):
            assert fields["input_ids"][place].tolist() == row.prompt_ids + row.response_ids
            assert torch.equal(fields["ref_log_prob"][place], reference[block][place])
        seen += fields["f_divergence_side"].tolist()
    assert seen == list(range(8))


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_each_side_is_divided_by_its_own_count(level):
    data = [TokenRow([1], [2] * length, side, None, "") for length, side in ((3, True), (2, False), (1, False))]
    numbers = preference_numbers(data, FDivergenceConfig(level=level), lam=0.25)
    assert numbers["f_divergence_count"].tolist() == ([3, 3, 3] if level == "token" else [1, 2, 2])
    assert numbers["f_divergence_side"].tolist() == [1, -1, -1]
    assert numbers["f_divergence_tokens"].tolist() == [3, 2, 1]
    assert numbers["f_divergence_lam"].tolist() == [0.25] * 3
    assert numbers["f_divergence_fresh"].tolist() == [0, 0, 0]


def test_held_out_accuracy_counts_pairs_and_without_pairs_all_couples():
    sides = [True, False, True, False]
    paired = [TokenRow([1], [2], side, f"p{i // 2}", "") for i, side in enumerate(sides)]
    rewards = torch.tensor([0.5, 0.1, -0.3, 0.2])
    found = held_out_metrics(paired, rewards, FDivergenceConfig(divergence="pearson"))
    assert found["val-preference/accuracy"] == 0.5
    assert found["val-preference/implicit_reward_margin"] == pytest.approx(0.1 - 0.15)
    estimate = 0.1 - ((0.1 + 0.01 / 4) + (0.2 + 0.04 / 4)) / 2
    assert found["val-preference/divergence_estimate"] == pytest.approx(estimate)
    unpaired = [TokenRow([1], [2], side, None, "") for side in sides]
    assert held_out_metrics(unpaired, rewards, FDivergenceConfig())["val-preference/accuracy"] == 0.5
    tied = held_out_metrics(paired, torch.tensor([0.0, 0.0, 1.0, 0.0]), FDivergenceConfig())
    assert tied["val-preference/accuracy"] == 0.75
    many = torch.randint(0, 5, (60,), generator=torch.Generator().manual_seed(0)).float()
    rows = [TokenRow([1], [2], i % 3 == 0, None, "") for i in range(60)]
    above, below = many[::3], many[torch.arange(60) % 3 != 0]
    couples = [1.0 if a > b else 0.5 if a == b else 0.0 for a in above for b in below]
    settings = FDivergenceConfig(divergence="kl", link="density_ratio")
    assert held_out_metrics(rows, many, settings)["val-preference/accuracy"] == pytest.approx(sum(couples) / 800)
    far = held_out_metrics(rows, many + 1e4, settings)  # outside of what float32 can hold of exp(r)
    assert math.isfinite(far["val-preference/divergence_estimate"])


def test_quantiles_of_bins_are_near_those_of_the_values():
    values = np.random.default_rng(0).normal(size=4000)
    edges = np.linspace(-3, 3, 61)
    counts = np.bincount(np.searchsorted(edges, values), minlength=62)
    for share in (0.05, 0.5, 0.95):
        assert quantile_of_bins(counts.tolist(), edges.tolist(), share) == pytest.approx(
            np.quantile(values, share), abs=0.02
        )
    assert math.isnan(quantile_of_bins([0.0, 0.0], [1.0], 0.5))
    assert quantile_of_bins([5.0, 0.0, 0.0], [-1.0, 1.0], 0.05) == -1.0
    assert quantile_of_bins([0.0, 0.0, 5.0], [-1.0, 1.0], 0.05) == 1.0


@pytest.fixture
def config(tmp_path, stock_config, inputs):
    """A configuration with a model of random weights and eight pairs, which nothing has validated."""
    import json

    from fgrpo_plugin.quickstart.model import build_model, build_tokenizer, save_model

    tokenizer = build_tokenizer()
    save_model(build_model(tokenizer, 0), tokenizer, tmp_path / "model")
    file = tmp_path / "prefs.jsonl"
    pairs = [{"prompt": f"{i}+1=", "chosen": str(i + 1), "rejected": str(i)} for i in range(8)]
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return stock_config(
        *inputs,
        "+fgrpo=quickstart",
        f"+data.preference.files=[{file}]",
        f"+data.preference.cache_dir={tmp_path / 'cache'}",
        "+data.preference.batch_size=4",
    )


@pytest.fixture
def stream(config):
    from fgrpo_plugin.quickstart.model import build_tokenizer

    return lambda: PreferenceSource(config, build_tokenizer())


class Reference:
    """Stands for the host's reference worker: log-probs that depend on the tokens, and a count of the rows asked."""

    def __init__(self, shift=0.0):
        self.asked, self.shift = 0, shift

    def __call__(self, data):
        self.asked += len(data)
        return [-torch.tensor(row.response_ids).float() / 100 + self.shift for row in data]


def test_reference_log_probs_are_computed_once_and_rechecked_at_a_start(stream):
    first, worker = stream(), Reference()
    for _ in range(4):  # one epoch: 8 rows a side, 2 a side and draw
        [[drawn]] = first.draw(1, 1)
        values, hits = first.reference(drawn, worker)
        assert hits == 0.0
        assert all(
            torch.equal(v, -torch.tensor(r.response_ids).float() / 100) for v, r in zip(values, drawn, strict=True)
        )
    assert worker.asked == 16
    [[drawn]] = first.draw(1, 1)
    assert first.reference(drawn, worker)[1] == 1.0 and worker.asked == 16  # the second epoch
    second, again = stream(), Reference()
    [[drawn]] = second.draw(1, 1)
    assert second.reference(drawn, again)[1] == 1.0 and again.asked == 4  # the recheck of a second run, and no more
    [[drawn]] = second.draw(1, 1)
    assert second.reference(drawn, again)[1] == 1.0 and again.asked == 4


def test_rows_that_are_known_already_are_not_computed_again(stream):
    first = stream()
    [[drawn]] = first.draw(1, 1)
    first.reference(drawn[:2], Reference())
    worker = Reference()
    assert first.reference(drawn, worker)[1] == 0.5 and worker.asked == 2


def test_a_reference_that_gives_other_log_probs_is_refused_when_first_known_rows_are_asked_for(stream):
    first = stream()
    [[drawn]] = first.draw(1, 1)
    [[others]] = first.draw(1, 1)
    first.reference(drawn, Reference())
    second, worker = stream(), Reference(shift=0.01)
    second.reference(others, worker)  # nothing to compare yet
    with pytest.raises(ValueError, match="delete the folder"):
        second.reference(drawn, worker)


def test_the_samplers_state_travels_in_the_hosts_checkpoint_folder(stream, tmp_path, capsys):
    whole = stream()
    expected = [[row.digest for rank in whole.draw(1, 2)[0] for row in rank] for _ in range(5)]
    first = stream()
    drawn = [[row.digest for rank in first.draw(1, 2)[0] for row in rank] for _ in range(2)]
    first.save(tmp_path / "global_step_2")
    first.draw(1, 2)
    resumed = stream()
    resumed.load(tmp_path / "global_step_2")
    drawn += [[row.digest for rank in resumed.draw(1, 2)[0] for row in rank] for _ in range(2)]
    assert drawn == expected[:4]
    # On another number of ranks: the same rows in each mini-batch.
    assert sorted(row.digest for row in resumed.draw(1, 1)[0][0]) == sorted(expected[4])
    resumed.load(tmp_path)  # a checkpoint of f-GRPO
    assert "preference rows start from the beginning" in capsys.readouterr().out


def test_temperature_dtype_and_model_are_in_the_caches_key(config):
    key = cache_key(config, "abc")
    assert key["temperature"] == 1.0 and key["dtype"] == "fp32" and key["host"].startswith("verl 0.9")
    OmegaConf.set_struct(config, False)
    for change in (
        "actor_rollout_ref.rollout.temperature=0.5",
        "actor_rollout_ref.ref.fsdp_config.mixed_precision.param_dtype=bf16",
        "actor_rollout_ref.model.override_config.rope_theta=2.0",
        "actor_rollout_ref.ref.strategy=fsdp",
    ):
        name, value = change.split("=")
        other = config.copy()
        OmegaConf.update(other, name, value, force_add=True)
        assert cache_key(other, "abc") != key, change
    assert cache_key(config, "abd") != key
