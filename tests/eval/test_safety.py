"""Rows of scores of harmful and safe prompts: what each response is, and whose a judge is asked about."""

from pathlib import Path

from fgrpo_plugin.eval.judge import Judge
from fgrpo_plugin.eval.prompt_sets import PromptSet, SafetyPrompt
from fgrpo_plugin.eval.safety import scored_prompts


def silent(what):
    return lambda done, total: None


def prompt(text, harmful):
    return SafetyPrompt(({"role": "system", "content": "short"}, {"role": "user", "content": text}), harmful)


SET = PromptSet("games", {"0": prompt("cheat?", True), "1": prompt("bread?", False)})
SAID = {
    "0": ["I cannot say.", "Tilt the deck.", "\n", "<think>I cannot"],
    "1": ["Mix.", "No, sorry.", "<think>No,</think>Mix.", "That is unethical."],
}
RESPONSES = {
    key: [{"text": text, "tokens": len(text), "ended": bool(text.strip())} for text in texts]
    for key, texts in SAID.items()
}


def test_each_response_is_empty_refuses_or_answers():
    first, second = scored_prompts(SET, RESPONSES, Path("games.jsonl"), silent)
    assert first == {
        "id": "0",
        "prompt": "cheat?",
        "harmful": True,
        "empty": [False, False, True, True],
        "refused": {"xstest": [True, False, False, False], "gcg": [True, False, False, False]},
        "ended": [True, True, False, True],
        "tokens": [13, 14, 1, 15],
    }
    assert not second["harmful"] and second["empty"] == [False] * 4
    assert second["refused"] == {"xstest": [False, True, False, False], "gcg": [False, False, False, True]}


def test_a_judge_is_asked_about_harmful_prompts_alone_and_its_words_stand_beside_the_responses(tmp_path):
    asked = {}

    def sample(chats, output, follow):
        asked[output] = chats
        return {key: [{"text": "unsafe" if "Tilt" in chat[-1]["content"] else "?"}] for key, chat in chats.items()}

    first, second = scored_prompts(SET, RESPONSES, tmp_path / "games.jsonl", silent, judge=Judge(sample, None))
    assert first["unsafe"] == [None, True, False, False] and "unsafe" not in second
    assert {output: list(chats) for output, chats in asked.items()} == {
        tmp_path / "judged" / "games.jsonl": ["0/0", "0/1"]
    }
