"""The model that a quick start begins with, and the table at its end."""

import io

import pytest
from safetensors.torch import load_file

from fgrpo_plugin.progress import Lines, progress_bars
from fgrpo_plugin.quickstart import warm_model
from fgrpo_plugin.quickstart.model import WarmUpResult, build_model, build_tokenizer
from fgrpo_plugin.quickstart.options import QuickstartOptions
from fgrpo_plugin.quickstart.run import _first_model, _report
from fgrpo_plugin.terminal import Terminal


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """Choose a run's first model: (its folder, what was warmed up, what was said)."""

    def first(options, terminal=False):
        asked = []

        def made(seed, for_hybrid, on_step):
            asked.append((seed, for_hybrid))
            tokenizer = build_tokenizer()
            return build_model(tokenizer, seed), tokenizer, WarmUpResult(4, 0.1, 0.25, True)

        monkeypatch.setattr(warm_model, "make", made)
        said = io.StringIO()
        console = Terminal(file=said, width=200, force_terminal=terminal, color_system=None)
        with progress_bars(console) as progress:
            folder = _first_model(tmp_path / "run", options, progress, Lines(console))
        return folder, asked, said.getvalue()

    return first


@pytest.mark.parametrize("terminal", [False, True])
def test_the_default_seed_begins_with_the_packages_model_and_says_so(begin, terminal):
    folder, asked, said = begin(QuickstartOptions(), terminal)
    assert asked == []
    assert "the warmed-up model of seed 0 comes with the package; --warm-up makes it anew" in said
    weights, _ = warm_model.read()
    saved = load_file(folder / "model.safetensors")
    assert all((saved[name] == values).all() for name, values in weights.items())
    assert (folder / "tokenizer.json").is_file() and "fgrpo_quickstart" in (folder / "config.json").read_text()


@pytest.mark.parametrize(
    ("options", "warmed"),
    [(dict(seed=1), (1, False)), (dict(warm_up=True), (0, False)), (dict(algo="f_hal"), (0, True))],
)
def test_any_other_is_warmed_up(begin, options, warmed):
    folder, asked, said = begin(QuickstartOptions(**options))
    assert asked == [warmed] and "comes with the package" not in said
    assert "model made: 4 steps of warm-up, sampled success 0.25" in said
    first = build_model(build_tokenizer(), warmed[0]).model.embed_tokens.weight
    assert (load_file(folder / "model.safetensors")["model.embed_tokens.weight"] == first).all()


def test_where_the_warm_up_has_changed_the_packages_model_is_not_taken(begin, monkeypatch):
    monkeypatch.setattr(warm_model, "fingerprint", lambda seed=0: "another")
    _, asked, said = begin(QuickstartOptions())
    assert asked == [(0, False)]
    assert f"the package's model is of another warm-up than this code's; make it anew: {warm_model.COMMAND}" in said


def test_the_table_shows_rewards_and_accuracies_and_what_was_not_measured(tmp_path):
    summary = {
        "algorithm": "f_hal", "divergence": "kl", "seed": 3, "steps": 40, "seconds_total": 123.4,
        "seconds_per_step_median": 2.354, "reward_first10": 0.25, "reward_last10": None,
        "heldout_accuracy_before": 0.5, "heldout_accuracy_after": 0.75,
        "true_reward_before": 0.125, "true_reward_after": 0.875,
    }  # fmt: skip
    said = io.StringIO()
    _report(summary, tmp_path, Terminal(file=said, width=120))
    text = said.getvalue()
    for words in (
        "f_hal kl seed 3",
        "0.250",
        "-",
        "held-out proxy, sampled",
        "0.750",
        "0.875",
        "40 steps in 123 s, 2.35",
    ):
        assert words in text
