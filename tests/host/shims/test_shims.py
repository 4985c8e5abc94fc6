"""The check that a function of verl is the one that a shim was written for."""

from importlib.metadata import version

import pytest


def test_known_source():
    from fgrpo_plugin.host.shims import known_source, source_hash

    def known(): ...

    def unknown(): ...

    arguments = {"hashes": {source_hash(known)}, "what": "host.function", "remedy": "install verl of last year"}
    known_source(known, **arguments)
    with pytest.raises(RuntimeError) as refusal:
        known_source(unknown, **arguments)
    sentence = str(refusal.value)
    assert "host.function" in sentence
    assert version("verl") in sentence
    assert sentence.endswith("install verl of last year.")
    assert "\n" not in sentence
