"""Preference data for the configurations that tests complete."""

import pytest


@pytest.fixture
def preferences(tmp_path):
    """As many pairs as the stock batch takes of each side, as an override."""
    import json

    file = tmp_path / "prefs.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": str(i), "chosen": f"a{i}", "rejected": f"b{i}"}) + "\n" for i in range(512))
    )
    return f"+data.preference.files=[{file}]"
