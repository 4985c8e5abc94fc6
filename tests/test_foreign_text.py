"""What others wrote is shown as text, and what is private is left out."""

import io
import os
import time
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from fgrpo_plugin.foreign_text import (
    markdown_text,
    picture_text,
    printable,
    say,
    without_home,
    without_private,
    without_secrets,
)
from tests.support.hostile import HOSTILE, STEERING


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_that_steers_a_terminal_is_left(text):
    shown = printable(text)
    assert not set(STEERING) & set(shown)
    assert shown.count("\n") == text.count("\n")  # line ends stay
    assert printable(shown) == shown  # what is shown twice is not written out twice


@pytest.mark.parametrize(
    "text, shown",
    [
        ("\x1b[31m", r"\x1b[31m"),
        ("a\u202eb", r"a\u202eb"),
        ("\ud83d", r"\ud83d"),
        ("\x00", r"\x00"),
        ("\x9b2J", r"\x9b2J"),
        ("\u2028", r"\u2028"),
        ("a\u3164\u115f\u034f\u2800b", r"a\u3164\u115f\u034f\u2800b"),
        ("\ufe01\U000e0101", r"\ufe01\U000e0101"),
        ("\u2764\ufe0f", "\u2764\ufe0f"),
        ("grün 漢字 \u200c\u200d a\tb\nc", "grün 漢字 \u200c\u200d a\tb\nc"),
    ],
)
def test_what_is_written_out_and_what_stays(text, shown):
    assert printable(text) == shown


def test_a_line_is_said_where_it_belongs(capsys):
    say("a\x1bb")
    say("c\x1bd", error=True)
    assert capsys.readouterr() == ("a\\x1bb\n", "c\\x1bd\n")


@pytest.mark.parametrize(
    "encoding, shown", [("ascii", r"gr\xfcn \u6f22 \U0001f642"), ("latin-1", r"grün \u6f22 \U0001f642")]
)
def test_a_line_is_said_where_the_output_has_no_letters_for_it(monkeypatch, encoding, shown):
    """As under a locale that is not UTF-8: a line of a log would else end the run."""
    target = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", target)
    say("grün 漢 🙂")
    assert target.buffer.getvalue().decode(encoding) == f"{shown}\n"


@pytest.mark.parametrize("text", HOSTILE)
def test_a_cell_of_markdown_is_text_and_nothing_else(text):
    table = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    cell = markdown_text(text)
    tokens = table.parse(f"| {cell} | next |\n| --- | --- |\n| {cell} | last |")
    inline = [token for token in tokens if token.type == "inline"]
    assert len(inline) == 4 and [inline[1].content, inline[3].content] == ["next", "last"]
    for token in (inline[0], inline[2]):
        kinds = {child.type for child in token.children}
        assert kinds <= {"text", "text_special"}, kinds
        # To the character what a terminal would show of it, on one line.
        assert "".join(child.content for child in token.children) == printable(" ".join(text.splitlines())).strip()
    (heading,) = [token for token in table.parse(f"# x {cell}") if token.type == "inline"]
    assert {child.type for child in heading.children} <= {"text", "text_special"}


def test_what_needs_no_escape_in_markdown_has_none():
    for plain in ("0.512 [0.4, 0.6]", "my_model-7.5B (LoRA)", "+1.0e-5", "Qwen/Qwen2.5-0.5B", "{'a': 1}"):
        assert markdown_text(plain) == plain


@pytest.mark.parametrize("text", [*HOSTILE, "_hidden", "a$b", r"a\$b", "$$"])
def test_matplotlib_draws_it_as_it_is(text):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(1, 1))
    try:
        axes.plot([0], [0], label=picture_text(text))
        drawn, is_mathematics = axes.legend().get_texts()[0]._preprocess_math(picture_text(text))
    finally:
        plt.close(figure)
    whole = printable(" ".join(text.splitlines()))
    assert not is_mathematics
    assert drawn.lstrip() == (whole if len(whole) <= 100 else whole[:97] + "...").lstrip()


@pytest.mark.parametrize(
    "text, left",
    [
        ("+a.wandb_api_key=abc", "+a.wandb_api_key=***"),
        ("+r.env_vars={WANDB_API_KEY: abc, OTHER: d}", "+r.env_vars={WANDB_API_KEY: ***, OTHER: d}"),
        ("+a.password='x, y'", "+a.password=***"),
        ("HF_TOKEN=abc", "HF_TOKEN=***"),
        ("--api-key=abc --access-token=d", "--api-key=***"),
        ("+server.api-key=abc", "+server.api-key=***"),
        ("a.my_token=abc", "a.my_token=***"),
        ("https://me:word@host/v1?api_key=abc&model=m", "https://host/v1?api_key=***&model=m"),
        ("http://a@b@host/x@main", "http://host/x@main"),
        ("hf_abcdefghijklmnopqrstu", "***"),
        ("glpat-abcdefghijklmnopqrst xoxb-1234567890-abc", "*** ***"),
        ("AKIAABCDEFGHIJKLMNOP AIza" + "b" * 35 + " nvapi-" + "c" * 20, "*** *** ***"),
        ("serve --token abc --port 8000", "serve --token *** --port 8000"),
        ("curl -H 'Authorization: Bearer abc.def'", "curl -H 'Authorization: Bearer ***'"),
        ("rollout.max_tokens=5", "rollout.max_tokens=5"),
        ("data.tokenizer=x", "data.tokenizer=x"),
        ("loss_agg_mode=token-mean", "loss_agg_mode=token-mean"),
        ("actor.ppo_max_token_len_per_gpu=100", "actor.ppo_max_token_len_per_gpu=100"),
    ],
)
def test_secrets_are_known_by_their_name_and_form(text, left):
    assert without_secrets(text, {}) == left


def test_secrets_are_known_by_the_environment():
    environment = {"MY_SECRET": "correct-horse", "SOME_KEY": "short", "HOME": "/elsewhere"}
    assert without_secrets("x=correct-horse, short, /elsewhere", environment) == "x=***, short, /elsewhere"


def test_the_home_folder_is_a_tilde_where_it_is_meant(monkeypatch):
    monkeypatch.setenv("HOME", "/users/jane")
    for text, left in (
        ("/users/jane", "~"),
        ("'/users/jane/a b'", "'~/a b'"),
        ("[/users/jane/a,/users/jane/b]", "[~/a,~/b]"),
        ("file:///users/jane/x", "file://~/x"),
        ("/users/janet/x", "/users/janet/x"),
        ("/data/users/jane/x", "/data/users/jane/x"),
    ):
        assert without_home(text) == left
    monkeypatch.setenv("HF_TOKEN", "correct-horse")
    assert without_private("/users/jane/x?token=y correct-horse") == "~/x?token=***"
    monkeypatch.setenv("HOME", "/")
    assert without_home("/a/b") == "/a/b"


def test_home_folders_behind_a_link_are_known(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "link")
    monkeypatch.setenv("HOME", str(tmp_path / "link"))
    assert without_home(f"{tmp_path}/real/x {tmp_path}/link/y") == "~/x ~/y"


def test_a_user_of_whom_no_home_is_known_hides_secrets_all_the_same(monkeypatch):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    assert without_private("/data/x?api_key=abc") == "/data/x?api_key=***"


def test_a_long_name_takes_no_time_that_grows_with_its_square():
    began = time.process_time()
    text = "a.b-c_" * 30_000
    assert without_secrets(f"{text}token=abc", {}) == f"{text}token=***"
    assert time.process_time() - began < 5
