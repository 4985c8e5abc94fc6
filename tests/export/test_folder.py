"""A folder appears whole or not at all, and nothing but a model is ever replaced."""

from pathlib import Path

import pytest

from fgrpo_plugin.export.folder import new_folder, refuse_target


def write(target, text="new", **given):
    with new_folder(target, **{"overwrite": False, **given}) as folder:
        (folder / "config.json").write_text(text)
        assert folder != target and folder.parent == target.parent


def test_it_appears_at_the_end(tmp_path):
    write(tmp_path / "deep" / "model")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model"]
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").read_text() == "new"


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_an_error_leaves_what_was_there(tmp_path, error):
    write(tmp_path / "model", "old")
    with pytest.raises(type(error)), new_folder(tmp_path / "model", overwrite=True) as folder:
        (folder / "config.json").write_text("half")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "config.json").read_text() == "old"


def test_a_model_is_replaced_when_asked(tmp_path):
    write(tmp_path / "model", "old")
    (tmp_path / "model" / "model-00001-of-00002.safetensors").touch()
    with pytest.raises(ValueError, match=r"exists and is not empty; name another, or replace it with --overwrite\.$"):
        write(tmp_path / "model")
    write(tmp_path / "model", overwrite=True)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["config.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_no_model_is_never_removed(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is no folder"):
        write(tmp_path / "file", overwrite=True)
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"is no model's folder .*, so --overwrite does not remove it"):
        write(tmp_path / "papers", overwrite=True)
    run = tmp_path / "run"
    (run / "global_step_1" / "actor").mkdir(parents=True)
    (run / "config.json").touch()
    with pytest.raises(ValueError, match=r"holds .*actor, which is read; name another folder\.$"):
        write(run, overwrite=True, keep=[run / "global_step_1" / "actor"])
    assert (run / "global_step_1" / "actor").is_dir()
    inside = run / "global_step_1" / "actor" / "huggingface"
    inside.mkdir()
    (inside / "config.json").touch()
    with pytest.raises(ValueError, match=r"huggingface: lies in .*actor, which is read; name another folder\.$"):
        write(inside, overwrite=True, keep=[run / "global_step_1" / "actor"])
    write(run / "global_step_1" / "other", keep=[run / "global_step_1" / "actor"])


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--output=.*file/deep/model: .*file is no folder; name another place\.$"):
        refuse_target(tmp_path / "file" / "deep" / "model", overwrite=False)
    refuse_target(tmp_path / "new" / "deep" / "model", overwrite=False)
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)  # whoever runs the tests may be root
    with pytest.raises(ValueError, match=r"--output=.*: .* cannot be written to; name another place\.$"):
        refuse_target(tmp_path / "new" / "model", overwrite=False)
