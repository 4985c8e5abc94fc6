"""Reference log-probs, their cache and the sampler's state."""

import math

import pytest
import torch

from fgrpo_plugin.host.driver.preference_source import PreferenceSource, differences_of


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


def refused(source, reference, noise):
    """Whether a second run's recheck refuses log-probs that differ from the first's by `noise`, row by row."""
    [[drawn]] = source().draw(1, 1)
    source().reference(drawn, reference)
    parts = iter(noise)
    try:
        source().reference(drawn, lambda rows: [values + next(parts) for values in reference(rows)])
    except ValueError as error:
        assert "cached reference log-probs are not this reference's" in str(error)
        return True
    return False


class LongReference:
    """900 tokens a response, whatever its rows are."""

    def __call__(self, rows):
        return [-torch.arange(900.0).remainder(7) for _ in rows]


@pytest.fixture
def long_source(config, monkeypatch):
    """A source whose rows have responses of 900 tokens, and whose reference computes in bfloat16."""
    from fgrpo_plugin.preference.token_rows import TokenRow
    from fgrpo_plugin.quickstart.model import build_tokenizer

    config.actor_rollout_ref.ref.fsdp_config.mixed_precision.param_dtype = "bf16"

    def source():
        made = PreferenceSource(config, build_tokenizer())
        rows = [TokenRow([1], [i + 2] * 900, i % 2 == 0, None, "") for i in range(4)]
        monkeypatch.setattr(made, "draw", lambda minibatches, ranks: [[rows]])
        return made

    return source


@pytest.mark.parametrize(
    "shift, wrong",
    [(0.045, True), (-0.045, True), (0.02, True), (0.0, False), (math.nan, True)],
)
def test_a_reference_that_is_a_little_off_in_every_token_is_refused_and_noise_is_not(long_source, shift, wrong):
    # The noise measured in bfloat16, of either sign: a standard deviation of 0.057 nats a token.
    noise = 0.057 * torch.randn(4, 900, generator=torch.Generator().manual_seed(0)) + shift
    assert refused(long_source, LongReference(), noise) is wrong


def test_one_response_that_is_off_is_refused_among_right_ones(long_source):
    noise = torch.zeros(4, 900)
    noise[2] = 0.02  # 18 nats in the sum of its tokens
    assert refused(long_source, LongReference(), noise)


def test_differences_by_hand():
    found = differences_of([torch.tensor([0.5, -0.1]), torch.tensor([0.2, 0.2, 0.2, 0.2])])
    assert found["largest"] == pytest.approx(0.5) and found["mean"] == pytest.approx(1.4 / 6)
    # Sums 0.4 of two tokens and 0.8 of four; 1.2 of six together.
    assert found["response"] == pytest.approx(0.8) and found["drift"] == pytest.approx(1.2 / 6**0.5)
    alone = differences_of([torch.tensor([0.5, 0.1]), torch.tensor([-0.2, -0.2, -0.2, -0.2])])
    assert alone["drift"] == pytest.approx(0.6 / 2**0.5)
