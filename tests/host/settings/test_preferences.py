"""Preference data are checked before Ray starts."""

import pytest

from fgrpo_plugin.host.settings.switch import complete
from tests.support.overrides import HAL


def test_a_bad_preference_row_ends_the_run_before_ray_unless_it_is_skipped(stock_config, inputs, tmp_path):
    file = tmp_path / "bad.jsonl"
    file.write_text(
        '{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt": "p", "chosen": "a", "rejected": "a"}\n'
    )
    config = stock_config(*inputs, HAL, f"+data.preference.files=[{file}]")
    with pytest.raises(ValueError, match=r"row 1: chosen and rejected are the same"):
        complete(config)
    small = ["+data.preference.batch_size=2", "trainer.n_gpus_per_node=1"]
    complete(stock_config(*inputs, HAL, f"+data.preference.files=[{file}]", "+data.preference.on_bad_row=skip", *small))
