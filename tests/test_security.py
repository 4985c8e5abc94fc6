"""An adversary's rows, names and checkpoints: nothing of them runs, steers or leaks (docs/security.md)."""

import ast
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from fgrpo_plugin import tables
from fgrpo_plugin.cli import app
from fgrpo_plugin.quickstart.model import build_tokenizer
from tests.support.hostile import HOSTILE, STEERING

PACKAGE = Path(__file__).parents[1] / "fgrpo_plugin"
SECRETS = {"HF_TOKEN": "correct-horse-battery", "WANDB_API_KEY": "0123456789abcdef0123", "OPENAI_API_KEY": "sk-planted"}

# What a module may not call or import, as a pattern of its dotted name, and where one is allowed, with the reason.
FORBIDDEN = re.compile(
    r"(pickle|dill|cloudpickle|joblib|shelve|marshal)(\.|$)|torch\.(save|load)$|(builtins\.)?(eval|exec|compile)$"
    r"|os\.(system|popen|exec\w*|spawn\w*)$|yaml\.(load|full_load|unsafe_load)(_all)?$|jinja2\.(Environment|Template)$"
    r"|(np|numpy)\.load$|tarfile|\.extractall$"
)
ALLOWED = {
    ("export/dcp_metadata.py", "pickle"): "an index of torch's, read with an allow list of names",
    ("export/dcp_metadata.py", "pickle.Unpickler"): "the same",
    ("export/dcp_metadata.py", "pickle.UnpicklingError"): "the same",
    ("export/weights.py", "torch.load"): "rank files of verl's FSDP checkpoints, weights_only=True",
    ("preference/token_rows.py", "np.load"): "arrays of numbers, allow_pickle=False",
}
REQUIRED = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "np.save": ("allow_pickle", False),
}


def names_of(tree):
    """Dotted names that are imported or used, with the call where it is one."""
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", None) for alias in node.names)
        elif isinstance(node, ast.Attribute) or (isinstance(node, ast.Name) and id(node) in called):
            yield ast.unparse(node), called.get(id(node))


def problems_of(source, place):
    found = []
    for name, call in names_of(ast.parse(source)):
        words = {word.arg: ast.unparse(word.value) for word in call.keywords} if call else {}
        if FORBIDDEN.search(name) and re.match(FORBIDDEN, name) and (place, name) not in ALLOWED:
            found.append(name)
        if call and name in REQUIRED and words.get(REQUIRED[name][0]) != str(REQUIRED[name][1]):
            found.append(f"{name} without {REQUIRED[name][0]}")
        if words.get("shell") == "True" or words.get("allow_pickle") == "True" or words.get("weights_only") == "False":
            found.append(f"{name}({words})")
        if words.get("trust_remote_code") == "True":
            found.append(f"{name}(trust_remote_code=True)")
        remote = re.fullmatch(r"Auto\w+\.from_pretrained", name) and place != "realmodel/model.py"  # its own conversion
        if call and remote and "trust_remote_code" not in words:
            found.append(f"{name} without trust_remote_code, which asks at the terminal")
    return found


def test_no_module_pickles_evaluates_or_runs_a_shell():
    modules = sorted(PACKAGE.rglob("*.py"))
    found = {str(path.relative_to(PACKAGE)): path.read_text() for path in modules}
    assert {place: bad for place, text in found.items() if (bad := problems_of(text, place))} == {}
    used = {(place, name) for place, text in found.items() for name, _ in names_of(ast.parse(text))}
    assert set(ALLOWED) <= used  # no exception outlives its reason


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import dumps",
        "torch.save(x, f)",
        "torch.load(f)",
        "np.load(f, allow_pickle=True)",
        "eval('1')",
        "os.system('x')",
        "subprocess.run('x', shell=True)",
        "yaml.load(f)",
        "jinja2.Template(row)",
        "AutoTokenizer.from_pretrained(x)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
    ],
)
def test_the_rule_above_can_fail(source):
    assert problems_of(source, "some.py")


def test_what_is_printed_goes_through_one_place():
    for path in PACKAGE.rglob("*.py"):
        place, text = str(path.relative_to(PACKAGE)), path.read_text()
        names = {name for name, _ in names_of(ast.parse(text))}
        if place != "terminal.py":
            assert not {"rich.console.Console", "rich.text.Text", "rich.print"} & names, place
        if place not in ("foreign_text.py", "host/doctor_reports.py"):  # the latter: JSON for `fgrpo doctor` alone
            assert "print" not in names, place
        assert not path.read_text().count("TextColumn(") - path.read_text().count("markup=False)"), place


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with a name of its own, and secrets in the environment."""
    folder = tmp_path / "homes" / "jane-planted"
    folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("COLUMNS", "300")
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return folder


def leaks(folder, written):
    """Files that hold the home folder or a secret, as bytes and in parquet's columns."""
    found = []
    for file in [path for path in written.rglob("*") if path.is_file()]:
        content = file.read_bytes()
        if file.suffix == ".parquet":
            content += json.dumps(pq.read_table(file).to_pylist(), default=str).encode()
        for word in (folder.name, *SECRETS.values(), "planted"):
            if word.encode() in content:
                found.append((file.name, word))
    return found


def rows():
    return [
        {"prompt": f"{number} {text}", "chosen": f"yes {text}", "rejected": f"no {text}", f"odd {text[:40]}": text}
        for number, text in enumerate(HOSTILE)
        if "\ud800" not in text
    ]


@pytest.mark.parametrize("command", ["check", "convert"])
def test_preference_data_are_shown_and_written_as_text(home, tmp_path, command):
    file = home / "a[red] \x1b[31m.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    out = tmp_path / "out" / "rows.parquet"
    words = ["prefs", command, str(file)] + (["--output", str(out)] if command == "convert" else [])
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert not set(STEERING) & set(done.output) and r"[red] \x1b[31m" in done.output
    if command == "convert":
        table = pq.read_table(out).to_pylist()
        assert table[0]["response"] == f"yes {HOSTILE[0]}"  # what is trained on is as it was
        assert table[0]["source"].startswith("~/a[red]") and leaks(home, out.parent) == []


def test_an_error_of_a_command_is_text(home):
    file = home / "b.jsonl"
    file.write_text(json.dumps({"x\x1b[2J[red]": 1}) + "\n")
    done = CliRunner().invoke(app, ["prefs", "check", str(file)])
    assert done.exit_code == 2 and r"x\x1b[2J[red]" in done.output and "\x1b" not in done.output


def test_kept_tokens_are_arrays_of_numbers_without_a_home(home, tmp_path):
    from fgrpo_plugin.preference.config import PreferenceConfig
    from fgrpo_plugin.preference.loading import RowSettings, load_rows

    file = home / "a.jsonl"
    file.write_text("".join(json.dumps({**row, "prompt": row["prompt"][:50]}) + "\n" for row in rows()[:4]))
    wanted = PreferenceConfig(files=(str(file),), on_templated="keep")
    loaded = load_rows(wanted, False, build_tokenizer(), RowSettings(500, 500, {}), tmp_path / "cache")
    assert loaded.rows[0].source.startswith("~/a.jsonl: row 0") and len(loaded.rows) == 8
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert {path.suffix for path in kept} == {".npy", ".json"}
    for path in kept:
        if path.suffix == ".npy":
            assert np.load(path, allow_pickle=False).dtype.kind in "iub"
    assert leaks(home, tmp_path / "cache") == []


def test_a_template_in_a_row_is_text():
    from fgrpo_plugin.preference.formats import LabelledResponse
    from fgrpo_plugin.preference.tokens import encode_row

    text = "{{ 7 * 7 }}{% for x in messages %}z{% endfor %}"
    row = LabelledResponse((("user", text),), text, desirable=True, pair=None, source="s")
    found = encode_row(row, tokenizer := build_tokenizer())
    whole = tokenizer.decode(found.prompt_ids + found.response_ids)
    assert whole.count(text) == 2 and "49" not in whole


@pytest.mark.parametrize("saved", [False, True])
def test_a_picture_that_a_row_names_is_not_opened(tmp_path, saved):
    import datasets

    secret = tmp_path / "secret.png"
    secret.write_bytes(b"no picture: whoever opens it fails")
    storage = [{"bytes": None, "path": str(secret)}, {"bytes": None, "path": "http://127.0.0.1:9/x.png"}]
    features = datasets.Features({"prompt": datasets.Value("string"), "image": datasets.Image()})
    datasets.Dataset.from_dict({"prompt": ["a"], "image": [None]}, features=features).save_to_disk(tmp_path / "set")
    file = next((tmp_path / "set").glob("*.arrow"))
    table = pa.table({"prompt": ["a", "b"], "image": storage}).cast(features.arrow_schema)
    with pa.ipc.new_stream(str(file), table.schema) as stream:  # the library would put the picture itself there
        stream.write_table(table)
    found = list(tables.load(str(tmp_path / "set" if saved else file), "train", split_setting="--split").rows)
    assert found == [{"prompt": "a", "image": storage[0]}, {"prompt": "b", "image": storage[1]}]


def test_a_script_in_a_folder_of_data_is_not_run(tmp_path):
    import datasets

    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "set.py").write_text(f"open({str(tmp_path / 'made')!r}, 'w')")
    with pytest.raises(ValueError):
        tables.load(str(folder), "train", split_setting="--split")
    assert not (tmp_path / "made").exists() and datasets.config.HF_DATASETS_TRUST_REMOTE_CODE is False


def test_code_in_an_answer_is_not_run(tmp_path):
    from fgrpo_plugin.eval.scoring import parsed_answer, parsed_response, same_answer

    call = f"__import__('pathlib').Path({str(tmp_path / 'made')!r}).touch()"
    for text in (call, f"\\boxed{{{call}}}", f"The answer is ${call}$.", f"= {call}"):
        same_answer(parsed_answer(text), parsed_response(text))
    assert not (tmp_path / "made").exists()


def test_an_evaluations_tables_are_text_in_a_terminal_and_in_markdown(home, tmp_path):
    from fgrpo_plugin.eval.labelled import Labelled, labelled_table
    from fgrpo_plugin.eval.options import show_table
    from fgrpo_plugin.terminal import Terminal

    labels = [text for text in HOSTILE if text.strip()]
    head, lines = labelled_table([Labelled((), "no", label) for label in labels])
    file = (tmp_path / "shown").open("w+", errors="surrogatepass")
    text = show_table("", head, lines, Terminal(file=file, width=20_000, color_system=None), left=1)
    file.seek(0)
    assert not set(STEERING) & set(file.read()) and not set(STEERING) & set(text)
    assert len(text.splitlines()) == len(labels) + 2
    assert "<img" not in re.sub(r"\\<", "", text) and len(set(map(_cells, text.splitlines()))) == 1


def _cells(line):
    return len(re.findall(r"(?<!\\)\|", line.replace("\\\\", "")))


def test_names_of_sets_and_models_are_text_in_scores(home, tmp_path):
    name, folder = "a|b <i> \x1b[31m `c`", tmp_path / "found"
    scores = {"model": "m", "set": name, "sampling": {}, "rows": [_math_row()]}
    (folder / "m").mkdir(parents=True)
    (folder / "m" / f"{name}.scores.json").write_text(json.dumps(scores))
    done = CliRunner().invoke(app, ["eval", "table", str(folder)])
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.output and r"a|b <i> \x1b[31m `c`" in done.output
    assert r"| a\|b \<i\> \\x1b[31m \`c\` | m |" in (folder / "table.md").read_text()


def _math_row():
    return {"id": "1", "right": [True], "vote": [0], "ended": [True], "tokens": [3], "slow": []}


def test_where_a_model_lies_is_not_written_with_its_scores(home, tmp_path):
    from fgrpo_plugin.eval.evaluating import evaluate
    from fgrpo_plugin.eval.sets import AskedSet

    how = {"settings": {"sampling": {}}, "follow": lambda what: lambda done, total: None}
    given = {"m": f"{home}/models/q", "s": f"https://u:{SECRETS['HF_TOKEN']}@h/v1"}
    evaluate(given, [AskedSet("set", {})], tmp_path / "out", lambda *_: {}, lambda *_: [], **how)
    assert json.loads((tmp_path / "out" / "m" / "set.scores.json").read_text())["from"] == "~/models/q"
    assert leaks(home, tmp_path / "out") == []


def test_a_servers_address_is_kept_without_its_user_and_key(home, tmp_path):
    from fgrpo_plugin.eval.sampling import Sampling
    from fgrpo_plugin.eval.server import server_responses

    server_responses("http://u:planted@h/v1?api_key=planted", "m", {}, tmp_path / "out" / "a.jsonl", Sampling())
    assert json.loads((tmp_path / "out" / "a.jsonl").read_text())["settings"]["server"] == "http://h/v1?api_key=***"
    assert leaks(home, tmp_path / "out") == []


def test_a_runs_log_begins_with_its_command_without_secrets(home, tmp_path, monkeypatch):
    import sys

    from fgrpo_plugin.progress import Lines, progress_bars
    from fgrpo_plugin.quickstart import training
    from fgrpo_plugin.quickstart.options import QuickstartError
    from fgrpo_plugin.terminal import Terminal

    words = [sys.executable, "-c", "pass", f"data.train_files='{home}/a'", "+trainer.wandb_api_key=planted"]
    words += [f"+env={{X: {SECRETS['HF_TOKEN']}}}"]
    console = Terminal(quiet=True)
    with progress_bars(console) as progress, pytest.raises(QuickstartError, match="ended with exit code 0"):
        training.train(tmp_path / "run", lambda ray: words, 1, progress, Lines(console))
    log = (tmp_path / "run" / "logs" / "train.log").read_text()
    assert log.rstrip().endswith("data.train_files='~/a' +trainer.wandb_api_key=*** +env={X: ***}")
    assert leaks(home, tmp_path / "run") == []


def test_what_a_real_model_run_was_begun_with_is_kept_without_secrets(home, tmp_path):
    from fgrpo_plugin.realmodel.kept import keep

    given = {"MODEL": f"{home}/q", "DATA": [f"{home}/a"], "--override": ["+x.api_key=planted"], "STEPS": 3}
    keep(tmp_path / "settings.json", given)
    keep(tmp_path / "settings.json", given)
    assert leaks(home, tmp_path) == [] and json.loads((tmp_path / "settings.json").read_text())["MODEL"] == "~/q"
    (tmp_path / "older.json").write_text(json.dumps(given))
    keep(tmp_path / "older.json", given)  # one that was begun before is gone on with


def test_inputs_of_a_quick_start_and_published_problems_are_written_without_them(home, tmp_path):
    from fgrpo_plugin.quickstart import inputs

    data = home / "own.jsonl"
    row = {"data_source": "openai/gsm8k", "reward_model": {"style": "rule", "ground_truth": "3"}}
    prompts = [{**row, "prompt": [{"role": "user", "content": f"{n}+1="}]} for n in range(12)]
    data.write_text("".join(json.dumps(one) + "\n" for one in prompts))
    out = tmp_path / "out"
    inputs.addition_inputs(out / "sums", home / "model")
    inputs.hybrid_inputs(out / "hybrid", home / "model")
    inputs.user_inputs(out / "own", home / "model", inputs.prepare_user_data(data, None))
    (home / "svamp.jsonl").write_text(json.dumps({"Body": "[red] 1 \x1b[31m.", "Question": "2?", "Answer": "3"}) + "\n")
    words = ["data", "svamp", "--source", str(home / "svamp.jsonl"), "--split", "train", "--output", str(out)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and len([*out.rglob("*.parquet")]) == 8, done.output
    assert leaks(home, out) == []


def test_hashes_of_model_files_say_nothing_of_their_place(home, tmp_path):
    from fgrpo_plugin.preference.model_files import model_fingerprint

    (home / "q").mkdir()
    (home / "q" / "model.safetensors").write_bytes(b"x")
    model_fingerprint(str(home / "q"), "s", tmp_path / "kept" / "hashes.json")
    assert leaks(home, tmp_path / "kept") == [] and json.loads((tmp_path / "kept" / "hashes.json").read_text())


def test_a_card_is_text_whatever_a_checkpoint_says(home):
    import yaml
    from markdown_it import MarkdownIt

    from fgrpo_plugin.export.card import model_card

    for text in HOSTILE:
        record = {"algorithm": text, "model": text, "versions": {"verl": text}, "data": {"train_files": [text]}}
        name = f'x"); import os; os.system("touch made") #{text}'
        how = {"step": 1, "engine": "FSDP", "form": "LoRA adapter", "dtype": "bfloat16"}
        card = model_card(record, base_model=text, hub=name, **how)
        _, head, body = re.split(r"^---$", card, maxsplit=2, flags=re.MULTILINE)
        assert set(yaml.safe_load(head)) == {"library_name", "pipeline_tag", "tags"}
        assert "os.system" not in card and not set(STEERING) & set(card)
        tokens = MarkdownIt("commonmark").enable("table").parse(body)
        children = [child for token in tokens for child in token.children or ()]
        links = [child.attrs["href"] for child in children if child.type == "link_open"]
        assert [link for link in links if "arxiv" not in link] == []
        assert not {"html_inline", "image", "code_inline", "html_block"} & {one.type for one in [*tokens, *children]}
        assert len([token for token in tokens if token.type == "heading_open"]) == 1


def test_a_run_record_names_no_home_and_no_secret(home):
    from fgrpo_plugin.host.settings.record import public_name

    for path in (
        f"{home}/data/x.parquet",
        "https://u:planted@h/x?token=planted#planted",
        "https://h/x#planted",
        f"hdfs://h/{SECRETS['HF_TOKEN']}",
    ):
        found = public_name(path)
        assert "planted" not in found and SECRETS["HF_TOKEN"] not in found


def test_a_link_out_of_a_checkpoint_is_not_passed_on_with_the_model(home, tmp_path):
    from fgrpo_plugin.export.model_folder import copy_rest

    (home / "token").write_text(SECRETS["HF_TOKEN"])
    run, out = tmp_path / "huggingface", tmp_path / "out"
    run.mkdir(), out.mkdir()
    (run / "tokenizer.json").write_text("{}")
    (run / "notes.txt").symlink_to(home / "token")
    with pytest.raises(ValueError, match=r"notes\.txt is a link out of the checkpoint"):
        copy_rest(run, out, of_run=True)
    assert leaks(home, out) == []
    copy_rest(run, out)  # a snapshot of a hub is made of links
    assert (out / "notes.txt").is_file()


def test_states_of_an_evaluation_are_safetensors(tmp_path):
    from fgrpo_plugin.eval.kept_states import KeptStates, prompt_key

    kept = KeptStates(tmp_path, {"weights": "w"})
    kept.add([prompt_key([1])], np.zeros((1, 2, 3), dtype=np.float32))
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    assert load_file(next(tmp_path.glob("*.safetensors")))["states"].shape == (1, 2, 3)


def test_a_refusal_before_ray_is_text():
    from fgrpo_plugin.host.shims.config_hook import _exit

    with pytest.raises(SystemExit, match=r"^fgrpo-plugin: column \\x1b\[2J is missing\\nfgrpo-plugin: all is well$"):
        _exit("column \x1b[2J is missing\nfgrpo-plugin: all is well")


def test_a_lock_that_somebody_has_laid_as_a_link_makes_no_file(tmp_path, monkeypatch):
    from fgrpo_plugin.quickstart import alone as lock

    monkeypatch.setattr(lock.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(lock, "other_runs", list)
    (tmp_path / "fgrpo-quickstart.lock").symlink_to(tmp_path / "elsewhere")
    with lock.only_run() as alone:
        assert alone
    assert not (tmp_path / "elsewhere").exists()
