"""The fuzzer's own pieces, and every input that once failed."""

from pathlib import Path

import pytest

from fgrpo_plugin.quickstart.model import build_tokenizer
from tests.fuzz.preference_reader import KINDS, Choices, content_of, rows, run

SEEDS = sorted(path for path in (Path(__file__).parent / "seeds").iterdir() if path.is_file())


@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: path.name)
def test_inputs_that_once_failed_are_read_or_refused(seed, tmp_path):
    run(seed.read_bytes(), tmp_path, build_tokenizer())


@pytest.mark.parametrize(
    "text", ['{"prompt": "p", "chosen": "a", "rejected": "b"}\n', "[", "", '{"prompt": 1}\n', '{"a": "\\ud800"}\n[]']
)
@pytest.mark.parametrize("kind", range(3))
def test_plain_content_is_an_input_of_each_kind_of_file(text, kind, tmp_path):
    read = run(bytes([kind]) + text.encode(), tmp_path, build_tokenizer())
    assert read == (2 if "chosen" in text else 0)


def test_choices_make_rows_of_every_format():
    import random

    draw = random.Random(0)
    seen = set()
    for _ in range(600):
        made = rows(Choices(draw.randbytes(60)))
        seen |= {name for row in made for name in row}
    assert {"chosen", "pair", "answers", "kto_tag", "conversation_a"} <= seen
    ending, content, _ = content_of(bytes([129]) + draw.randbytes(60))
    assert ending == KINDS[129 % 3] and content


def test_random_inputs_are_read_or_refused(tmp_path):
    """A taste of the fuzzer, without its search."""
    import random

    draw, tokenizer = random.Random(1), build_tokenizer()
    read = sum(run(bytes([128 + draw.randrange(128)]) + draw.randbytes(80), tmp_path, tokenizer) for _ in range(300))
    assert read > 50
