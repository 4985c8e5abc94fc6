"""The replay buffers of short runs."""


def test_replay_buffers_poll_more_often_unless_told_otherwise(facts):
    synchronous, asked, asynchronous, asked_too = facts["polls"]
    assert synchronous < 0.1 and asynchronous < 0.1
    assert asked == asked_too == 1.5
