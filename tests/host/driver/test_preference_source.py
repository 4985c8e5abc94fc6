"""Reference log-probs, their cache and the sampler's state."""

import json
import math

import pytest
import torch

from fgrpo_plugin.host.driver.preference_source import RECHECK_TOLERANCE, PreferenceSource, differences_of


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
    """Stands for verl's reference worker: log-probs that depend on the tokens, and a count of the rows asked."""

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
    assert second.reference(drawn, again)[1] == 1.0 and again.asked == 4  # the recheck of a second run
    for _ in range(20):
        [[drawn]] = second.draw(1, 1)
        assert second.reference(drawn, again)[1] == 1.0
    assert again.asked == 64  # and no more, short as the responses are


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


@pytest.mark.parametrize("text", ["", "{", "[]", '{"another": 1}', "null", "\x00" * 9])
def test_a_damaged_state_is_named_with_the_way_out(stream, tmp_path, text):
    source, folder = stream(), tmp_path / "global_step_2"
    source.save(folder)
    assert [file.name for file in folder.iterdir()] == ["f_divergence.json"]
    (folder / "f_divergence.json").write_text(text)
    with pytest.raises(ValueError, match=r"f_divergence\.json is damaged, .*resume_from_path, or start a new run"):
        source.load(folder)


def test_a_state_with_one_other_digit_is_damaged_and_one_of_an_earlier_version_is_read(stream, tmp_path):
    source, file = stream(), tmp_path / "f_divergence.json"
    source.draw(1, 1)
    source.save(tmp_path)
    state = source.sampler.state_dict()
    file.write_text(file.read_text().replace(f"{state['drawn'][0]},", f"{state['drawn'][0] + 2},"))
    with pytest.raises(ValueError, match=r"f_divergence\.json is damaged"):
        stream().load(tmp_path)
    file.write_text(json.dumps({"preference_sampler": state}))
    again = stream()
    again.load(tmp_path)
    assert again.sampler.state_dict() == state


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


def test_a_sum_that_one_token_may_make_has_no_drift():
    """Responses of a few tokens: their noise is that of their largest token."""
    short = [torch.tensor([0.6]), torch.tensor([-0.3, -0.4])]
    assert differences_of(short, 1.0)["drift"] == 0
    assert differences_of(short)["drift"] == pytest.approx(0.6)
    assert differences_of([*short, torch.full((100,), 0.05)], 1.0)["drift"] == pytest.approx(0.5)
    assert differences_of([torch.zeros(0), torch.tensor([0.25])])["response"] == 0.25


def test_the_recheck_goes_on_until_it_has_seen_enough(config, monkeypatch):
    """One short row says little: those of an earlier run are computed again up to 8 rows and 1000 tokens."""
    from fgrpo_plugin.preference.token_rows import TokenRow
    from fgrpo_plugin.quickstart.model import build_tokenizer

    config.actor_rollout_ref.ref.fsdp_config.mixed_precision.param_dtype = "bf16"
    rows = [TokenRow([1], [i % 90 + 2, i // 90 + 2] * 25, i % 2 == 0, None, "") for i in range(60)]

    def reference(asked, shift=0.0):
        again.append(len(asked))
        return [torch.full((50,), -1.0 + shift) for _ in asked]

    again = []
    first = PreferenceSource(config, build_tokenizer())
    for row in rows:
        first.reference([row], reference)
    assert again == [1] * 60
    again, second = [], PreferenceSource(config, build_tokenizer())
    for row in rows:
        second.reference([row], reference)
    assert again == [1] * 20  # 1000 tokens
    again, third = [], PreferenceSource(config, build_tokenizer())
    with pytest.raises(ValueError, match="not this reference's: of 2"):
        for row in rows:  # 0.045 nats a token: 0.32 in the drift of one row, 0.64 in that of four
            third.reference([row], lambda asked: reference(asked, 0.045))


@pytest.mark.parametrize("size, wrong", [(0.06, False), (0.079, False), (0.15, True)])
def test_noise_a_little_above_what_was_measured_is_taken(size, wrong):
    """Laplace noise of a mean size; 0.039 was measured."""
    noise = RECHECK_TOLERANCE["other"]
    alarms = 0
    for seed in range(50):
        draw = torch.Generator().manual_seed(seed)
        uniform = torch.rand(40, 30, generator=draw, dtype=torch.float64) - 0.5
        rows = [-size * row.sign() * (1 - 2 * row.abs()).log() for row in uniform]
        found = differences_of(rows, noise["largest"])
        alarms += not all(found[name] <= noise[name] for name in noise)
    assert (alarms > 45) if wrong else (alarms <= 5), alarms


def test_bounds_of_low_precision_are_those_that_were_chosen_from_the_measurement():
    assert RECHECK_TOLERANCE["other"] == {"largest": 1.0, "mean": 0.1, "drift": 0.4}
