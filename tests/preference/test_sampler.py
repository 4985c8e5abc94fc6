"""What is drawn, in which order, and that a resumed sampler goes on as if it had never stopped."""

import json
from collections import Counter

import pytest

from fgrpo_plugin.preference.sampler import PreferenceSampler
from fgrpo_plugin.preference.tokens import TokenRow


def rows(desirable=6, undesirable=6, paired=False):
    found = [TokenRow([1, 2], [i, 9], True, f"p{i}" if paired else None, f"f: row {i}") for i in range(desirable)]
    found += [TokenRow([1, 2], [50 + i, 9], False, f"p{i}" if paired else None, "f") for i in range(undesirable)]
    return found


def test_an_epoch_of_each_side_has_every_row_once_and_every_draw_is_balanced():
    data = rows(6, 4)
    sampler = PreferenceSampler(data, seed=3)
    seen = []
    for _ in range(6):
        drawn = sampler.draw(4)
        assert [data[i].desirable for i in drawn] == [True, False, True, False]
        seen += drawn
    counts = Counter(seen)
    assert {counts[i] for i in range(6)} == {2} and {counts[i] for i in range(6, 10)} == {3}
    # Within an epoch of a side nothing comes twice.
    above = [i for i in seen if data[i].desirable]
    assert sorted(above[:6]) == sorted(above[6:]) == list(range(6)) and above[:6] != above[6:]
    assert sampler.epochs() == pytest.approx(3.0)


def test_pairs_are_drawn_whole():
    data = rows(5, 5, paired=True)
    drawn = PreferenceSampler(data, seed=0, keep_pairs=True).draw(10)
    for chosen, rejected in zip(drawn[::2], drawn[1::2], strict=True):
        assert data[chosen].pair == data[rejected].pair
        assert data[chosen].desirable and not data[rejected].desirable
    assert sorted(drawn) == list(range(10))
    apart = PreferenceSampler(data, seed=0).draw(10)
    assert any(data[a].pair != data[b].pair for a, b in zip(apart[::2], apart[1::2], strict=True))


def test_a_draw_across_the_end_of_an_epoch_has_as_many_rows_as_any_other():
    data = rows(5, 3)
    sampler = PreferenceSampler(data, seed=2)
    seen = [sampler.draw(4) for _ in range(15)]
    assert {len(drawn) for drawn in seen} == {4}
    for side, size in ((True, 5), (False, 3)):
        order = [i for drawn in seen for i in drawn if data[i].desirable is side]
        assert len(order) == 30
        for epoch in range(30 // size):  # whole passes, wherever the draws cut them
            assert len(set(order[epoch * size : (epoch + 1) * size])) == size


def test_a_pair_is_drawn_desirable_row_first_however_the_file_has_it():
    data = list(reversed(rows(3, 3, paired=True)))
    drawn = PreferenceSampler(data, seed=0, keep_pairs=True).draw(6)
    assert [data[i].desirable for i in drawn] == [True, False] * 3


def test_a_state_of_the_same_texts_with_other_labels_is_refused():
    data = rows()
    state = PreferenceSampler(data, seed=0).state_dict()
    relabelled = [TokenRow(row.prompt_ids, row.response_ids, not row.desirable, row.pair, row.source) for row in data]
    with pytest.raises(ValueError, match=r"another data.preference.data"):
        PreferenceSampler(relabelled, seed=0).load_state_dict(state)


@pytest.mark.parametrize("keep_pairs", [False, True])
@pytest.mark.parametrize("stop", [1, 4, 9])
def test_resumed_it_is_the_uninterrupted_sampler(stop, keep_pairs):
    data = rows(7, 7, paired=True)
    whole = PreferenceSampler(data, seed=1, keep_pairs=keep_pairs)
    expected = [whole.draw(4) for _ in range(12)]
    first = PreferenceSampler(data, seed=1, keep_pairs=keep_pairs)
    drawn = [first.draw(4) for _ in range(stop)]
    state = json.loads(json.dumps(first.state_dict()))
    first.draw(4)  # what was drawn after the checkpoint is drawn again
    resumed = PreferenceSampler(data, seed=1, keep_pairs=keep_pairs)
    resumed.load_state_dict(state)
    drawn += [resumed.draw(4) for _ in range(12 - stop)]
    assert drawn == expected
    assert resumed.state_dict() == whole.state_dict()


def test_the_history_tells_two_orders_apart():
    one, two = PreferenceSampler(rows(), seed=0), PreferenceSampler(rows(), seed=0)
    one.draw(4), one.draw(2), two.draw(2), two.draw(4)
    assert one.state_dict()["drawn"] == two.state_dict()["drawn"]
    assert one.state_dict()["history"] != two.state_dict()["history"]


@pytest.mark.parametrize(
    "data, seed, keep_pairs, name",
    [(rows(6, 5), 0, False, "data"), (rows(), 1, False, "seed"), (rows(paired=True), 0, True, "keep_pairs")],
)
def test_a_state_of_other_data_or_settings_is_refused(data, seed, keep_pairs, name):
    state = PreferenceSampler(rows(), seed=0).state_dict()
    with pytest.raises(ValueError, match=f"another data.preference.{name}"):
        PreferenceSampler(data, seed=seed, keep_pairs=keep_pairs).load_state_dict(state)


def test_what_cannot_be_drawn_is_refused_by_name():
    with pytest.raises(ValueError, match=r"no undesirable \(D-\) rows"):
        PreferenceSampler(rows(3, 0), seed=0)
    with pytest.raises(ValueError, match="lower it to 6 or less"):
        PreferenceSampler(rows(3, 5), seed=0).draw(8)
    with pytest.raises(ValueError, match="even number"):
        PreferenceSampler(rows(), seed=0).draw(3)
    with pytest.raises(ValueError, match="keep_pairs=true, but f: row 0 is not half of a pair"):
        PreferenceSampler(rows(), seed=0, keep_pairs=True)
    with pytest.raises(ValueError, match="not half of a pair"):
        PreferenceSampler(rows(4, 3, paired=True), seed=0, keep_pairs=True)


@pytest.mark.parametrize(
    "change",
    [{"drawn": None}, {"drawn": [4]}, {"drawn": [4, 6]}, {"drawn": [-2, -2]}, {"drawn": ["4", "4"]}, {"history": 3}],
)
def test_a_damaged_state_is_refused_and_changes_nothing(change):
    sampler = PreferenceSampler(rows(), seed=0)
    sampler.draw(8)
    before = sampler.state_dict()
    with pytest.raises(ValueError, match="the checkpoint's preference sampler is damaged: it "):
        sampler.load_state_dict(before | change)
    assert sampler.state_dict() == before
