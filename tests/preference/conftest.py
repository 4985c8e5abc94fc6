"""Shared by the tests of preference data: files of rows, and a cache of their own for the library that reads them."""

import json

import pytest


@pytest.fixture(autouse=True)
def _library_cache(tmp_path_factory, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
