"""The replay buffer of short runs."""


def test_replay_buffer_polls_more_often(facts):
    fast, stock = facts["polls"]
    assert fast < 0.1 < stock
