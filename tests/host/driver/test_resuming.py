"""Any history of draws, saves, crashes, damage and resumptions against a plain list of what was drawn.

The sampler, the cache of reference log-probs and the checkpoints are those of a run, behind verl's own saving and
loading; the actor's worker writes one number. A crash is an error of the file system at any of its calls.
"""

import contextlib
import io
import itertools
import os
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from omegaconf import OmegaConf

from fgrpo_plugin import folders
from fgrpo_plugin.folders import is_part
from fgrpo_plugin.host.driver.checkpoints import Checkpoints, checkpoint_folders, tracked_step
from fgrpo_plugin.host.driver.preference_source import PreferenceSource
from fgrpo_plugin.manifest import MANIFEST
from fgrpo_plugin.preference.reference_cache import ReferenceCache
from fgrpo_plugin.preference.sampler import PreferenceSampler
from fgrpo_plugin.preference.token_rows import TokenRow, TokenRows

DATA = [TokenRow([1], [i + 2] * (i % 3 + 1), i < 7, None, f"f: row {i}") for i in range(12)]  # 7 D+, 5 D-
OTHER_DATA = [*DATA[:-1], TokenRow([1], [99], False, None, "f: row 11")]
WAYS = st.sampled_from(("flip", "cut", "empty", "remove", "other"))
CONFIG = OmegaConf.create(
    {
        "actor_rollout_ref": {
            "actor": {"strategy": "fsdp"},
            "ref": {"strategy": "fsdp", "fsdp_config": {"dtype": "float32"}},
            "model": {},
        }
    }
)


class Died(BaseException):
    """The process is killed: nothing after it is done, and a `BaseException` handler does not run either."""


class Source(PreferenceSource):
    """The preference data of a run, made of rows in place of files."""

    def __init__(self, rows, seed, batch_size, folder, key):
        self.rows, self.batch_size, self.held_out = TokenRows.of(rows), batch_size, []
        self.sampler = PreferenceSampler(self.rows, seed=seed)
        self._config, self._folder, self._key, self._cache, self._rechecked = CONFIG, folder, key, None, []


def log_prob(row, reference):
    """What a reference gives for a row: a function of both."""
    return -torch.tensor(row.response_ids, dtype=torch.float32) / 100 - reference


class Workers:
    """Stands for the actor, whose weights are a step."""

    def save_checkpoint(self, path, remote, step, max_ckpt_to_keep=None):
        Path(path).mkdir(parents=True, exist_ok=True)
        for name in ("model.pt", "optim.pt"):
            with (Path(path) / name).open("wb") as file:  # in place, as verl's workers do
                fails.at("write")
                file.write(f"{step}".encode() * 20)

    def load_checkpoint(self, local_path, del_local_after_load):
        models = {(Path(local_path) / name).read_text() for name in ("model.pt", "optim.pt")}
        assert len(models) == 1, "half of one step and half of another was loaded"
        (text,) = models
        self.step = int(text[: len(text) // 20])
        assert text == f"{self.step}" * 20, "a damaged file was loaded"


class Fails:
    """Kills the process at one of its next calls of the file system, leaving what a killed process leaves."""

    left = None

    def at(self, call):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Died(call)


fails = Fails()


class History(RuleBasedStateMachine):
    """Rules are what happens to a run; the model is what was drawn up to each step of the surviving timeline."""

    def __init__(self):
        super().__init__()
        from verl.trainer.ppo.v1.trainer_base import PPOTrainer

        stock = SimpleNamespace(save=PPOTrainer._save_checkpoint, load=PPOTrainer._load_checkpoint)

        class Stock:
            _save_checkpoint, _load_checkpoint = stock.save, stock.load

        self.trainer_class = type("Trainer", (Checkpoints, Stock), {})
        self.home = Path(tempfile.mkdtemp())
        self.run, self.cache = self.home / "run", self.home / "cache"
        self.drawn: list[list[int]] = []  # rows of each step of the timeline
        self.saved: dict[int, list[list[int]]] = {}  # of each step that a folder is of, the timeline up to it
        self.contents: dict[int, dict[Path, bytes] | None] = {}  # and its files; None where a save was cut off
        self.trainer = None
        self.patches = contextlib.ExitStack()
        patch = pytest.MonkeyPatch()
        self.patches.callback(patch.undo)
        replace, unlink = os.replace, Path.unlink
        patch.setattr(folders.os, "replace", lambda *names: (fails.at("replace"), replace(*names)))
        patch.setattr(folders.os, "fsync", lambda number: fails.at("fsync"))  # the disk itself is not asked to
        dead = lambda: fails.left is not None and fails.left < 0  # noqa: E731  (who is dead tidies up nothing)
        patch.setattr(Path, "unlink", lambda file, **more: None if dead() else unlink(file, **more))
        self.patches.callback(shutil.rmtree, self.home, ignore_errors=True)

    def teardown(self):
        fails.left = None
        self.patches.close()

    @initialize(seed=st.integers(0, 3), batch=st.sampled_from((2, 4, 6)))
    def begin(self, seed, batch):
        self.seed, self.batch, self.reference = seed, batch, 0.0
        other = ReferenceCache(self.cache, {"reference": 0.5})  # of a run before
        other.add(DATA[:8], [log_prob(row, 0.5) for row in DATA[:8]])
        self.start()

    def start(self, *, rows=DATA, seed=None, path=None):
        """Begin a process, which goes on from where verl's settings say; what it printed."""
        fails.left, self.asked = None, path is not None
        trainer = self.trainer_class()
        mode = {"resume_mode": "resume_path" if path else "auto", "resume_from_path": path and str(path)}
        trainer.config = OmegaConf.create(
            {
                "trainer": {"default_local_dir": str(self.run), "default_hdfs_dir": None, **mode}
                | {"del_local_ckpt_after_load": False},
                "actor_rollout_ref": {"actor": {}},
            }
        )
        trainer.global_steps, trainer.total_training_steps, trainer.trainer_mode = 0, 99, "sync"
        trainer.use_critic, trainer.actor_rollout_wg = False, Workers()
        trainer.train_dataloader = SimpleNamespace(state_dict=dict, load_state_dict=lambda state: None)
        trainer.checkpoint_callback = SimpleNamespace(on_save=lambda **given: None)
        seed = self.seed if seed is None else seed
        trainer.preferences = Source(rows, seed, self.batch, self.cache, {"reference": self.reference})
        self.trainer = None
        with contextlib.redirect_stdout(io.StringIO()) as said:
            trainer._load_checkpoint()
        self.trainer = trainer
        return said.getvalue()

    def dying(self, after, do):
        """Do something, and be killed at a call of the file system if it comes to so many."""
        fails.left = after
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                do()
        except Died:
            self.trainer = None
            return False
        finally:
            fails.left = None
        return True

    running = precondition(lambda self: self.trainer is not None)

    @running
    @rule(
        ranks=st.lists(st.sampled_from((1, 2)), min_size=1, max_size=3),
        step_dies=st.none() | st.none() | st.integers(0, 3),
        save_dies=st.none() | st.none() | st.integers(0, 12),
    )
    def train(self, ranks, step_dies, save_dies):
        """A few steps and a checkpoint; killed in the first step, in the save, or not at all."""
        for number, count in enumerate(ranks):
            if self.trainer is not None:
                self.step(step_dies if number == 0 else None, count)
        if self.trainer is not None:
            self.save(save_dies)

    def step(self, after, ranks):
        """A training step: draw, look up or compute the reference's log-probs, keep them."""
        source, computed = self.trainer.preferences, []
        before = {row.digest for row in DATA if source._open_cache().get(row) is not None}
        alone = PreferenceSampler(DATA, seed=self.seed)
        alone.load_state_dict(source.sampler.state_dict())
        indices = alone.draw(self.batch)
        rows = [row for rank in source.draw(1, ranks if self.batch == 4 else 1)[0] for row in rank]
        assert sorted(row.digest for row in rows) == sorted(DATA[i].digest for i in indices)
        reference = self.reference

        def compute(asked):
            computed.extend(asked)
            return [log_prob(row, reference) for row in asked]

        def look_up():
            for row, values in zip(rows, source.reference(rows, compute)[0], strict=True):
                assert torch.equal(values, log_prob(row, reference)), "another reference's value, or a damaged one"

        if self.dying(after, look_up):
            assert all(row.digest in before or row in computed for row in rows)
            self.trainer.global_steps += 1
            self.drawn.append(indices)
            if any(row.digest not in before for row in rows):  # not computed again alone: kept
                self.no_old_part_in(source._open_cache().folder)

    def no_old_part_in(self, folder):
        parts = [file for file in folder.iterdir() if is_part(file)]
        assert all(time.time() - file.stat().st_mtime < 3600 for file in parts), "killed writers' parts accumulate"

    def save(self, after):
        """A checkpoint of verl's and ours; killed in the middle it is never loaded, nor what it was written over."""
        step = self.trainer.global_steps
        whole = self.dying(after, self.trainer._save_checkpoint)
        if (self.run / f"global_step_{step}").exists():
            self.contents[step] = self.files_of(step) if whole else None
            if whole:
                self.saved[step] = list(self.drawn)
                self.no_old_part_in(self.run / f"global_step_{step}")

    def files_of(self, step):
        files = (self.run / f"global_step_{step}").rglob("*")
        return {file: file.read_bytes() for file in files if file.is_file() and not is_part(file)}

    @property
    def spoilt(self):
        """Steps whose files are not those that were written."""
        return {step for step, files in self.contents.items() if files is not None and files != self.files_of(step)}

    @property
    def uncertain(self):
        """Steps whose save was cut off: what was there before is loaded where nothing of it is changed."""
        return {step for step, files in self.contents.items() if files is None}

    @running
    @rule()
    def another_batch_size(self):
        self.batch = {2: 4, 4: 6, 6: 2}[self.batch]
        self.trainer.preferences.batch_size = self.batch

    @precondition(lambda self: self.saved)
    @rule(which=st.integers(0, 50), way=WAYS, place=st.integers(0, 10**6), last=st.booleans())
    def damage_a_checkpoint(self, which, way, place, last):
        """A file of a checkpoint, or verl's tracker, is damaged on the disk."""
        self.damage(self.run / f"global_step_{max(self.saved)}" if last else self.run, which, way, place)

    @rule(which=st.integers(0, 50), way=WAYS, place=st.integers(0, 10**6))
    def damage_the_cache(self, which, way, place):
        self.damage(self.cache, which, way, place)

    def damage(self, folder, which, way, place):
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        files = [file for file in files if file.name not in (MANIFEST, "hashes.json") and not is_part(file)]
        if not files:
            return
        file = files[which % len(files)]
        content, others = bytearray(file.read_bytes()), [one for one in files if one.name == file.name and one != file]
        if way == "flip" and content:
            content[place % len(content)] ^= 1 << place % 8
            file.write_bytes(content)
        elif way == "other" and (others or file.suffix == ".safetensors"):
            other = others[place % len(others)] if others else None
            if other is None or other.read_bytes() == bytes(content):
                return
            shutil.copy(other, file)
        elif way == "remove":
            file.unlink()
        elif content:
            file.write_bytes(b"" if way == "empty" else content[: place % len(content)])

    @rule()
    def a_file_of_the_cache_comes_from_another_references(self):
        caches = [folder for folder in self.cache.glob("*") if folder.is_dir()]
        for one, other in itertools.permutations(caches, 2):
            for file in list(one.glob("*.safetensors")):
                shutil.copy(file, other / file.name)

    @rule(old=st.booleans())
    def a_killed_writer_leaves_a_part(self, old):
        self.cache.mkdir(exist_ok=True)
        for place in [self.cache, *self.cache.glob("*/"), *self.run.glob("*/")]:
            part = place / f".{os.urandom(16).hex()}"
            part.write_bytes(b"half")
            if old:
                os.utime(part, (time.time() - 7200,) * 2)

    @rule(reference=st.sampled_from((0.0, 0.5)))
    def resume(self, reference):
        """The process ends, and another goes on from the newest whole checkpoint, whatever was damaged."""
        self.reference = reference
        try:
            said = self.start()
        except ValueError as reason:
            assert "none of its checkpoints can be loaded" in str(reason)
            assert set(self.eligible()) <= self.spoilt | self.uncertain
            return self.begin_anew()
        self.went_on_from(self.trainer.global_steps, said)

    @precondition(lambda self: self.saved)
    @rule(which=st.integers(0, 20))
    def resume_from(self, which):
        steps = [step for step in self.saved if (self.run / f"global_step_{step}").exists()]
        step = steps[which % len(steps)]
        try:
            said = self.start(path=self.run / f"global_step_{step}")
        except ValueError as reason:
            assert f"global_step_{step} is damaged: " in str(reason) and step in self.spoilt | self.uncertain
            return
        self.went_on_from(step, said)

    @precondition(lambda self: self.saved)
    @rule(which=st.sampled_from(("seed", "data")))
    def resume_with_another(self, which):
        """Refused by name, unless there is nothing to go on from."""
        others = {"seed": self.seed + 1} if which == "seed" else {"rows": OTHER_DATA}
        try:
            self.start(**others)
        except ValueError as reason:
            assert f"another data.preference.{which}" in str(reason) or "can be loaded" in str(reason)
        else:
            assert self.trainer.global_steps == 0
            self.trainer = None

    def eligible(self):
        tracked = tracked_step(self.run)
        return [step for step in checkpoint_folders(self.run) if tracked is None or step <= tracked]

    def went_on_from(self, step, said):
        """What was loaded is a checkpoint that was whole, and the timeline is the one that it was saved in."""
        newest = tracked_step(self.run)
        if newest in self.saved and newest not in self.spoilt | self.uncertain and not self.asked:
            assert step == newest, "a whole checkpoint was passed over"
        if newest in self.spoilt and not self.asked:
            assert f"global_step_{newest} is not loaded: " in said, said
        if step == 0:
            self.drawn = []
            return
        assert f"continues from {self.run / f'global_step_{step}'} (step {step})" in said
        assert self.trainer.actor_rollout_wg.step == step
        assert step not in self.spoilt, "a damaged checkpoint was loaded"
        self.drawn = list(self.timelines(step))

    def timelines(self, step):
        """The timeline whose draws the sampler says it comes from, told by its hash of them."""
        mine = self.trainer.preferences.sampler.state_dict()
        for timeline in (self.saved.get(step), self.drawn[:step]):
            if timeline is None or len(timeline) != step:
                continue
            again = PreferenceSampler(DATA, seed=self.seed)
            for rows in timeline:
                assert again.draw(len(rows)) == rows, "the order of rows is no function of the seed"
            if again.state_dict() == mine:
                return timeline
        raise AssertionError("a state was loaded that nobody has saved")

    def begin_anew(self):
        shutil.rmtree(self.run, ignore_errors=True)
        self.saved, self.contents, self.drawn = {}, {}, []
        self.start()

    @invariant()
    def rows_are_drawn_as_often_as_they_ought_to(self):
        for side, size in ((True, 7), (False, 5)):
            order = [i for i in itertools.chain(*self.drawn) if DATA[i].desirable is side]
            counts = Counter(order)
            assert set(counts.values()) <= {len(order) // size, -(-len(order) // size)}
            for epoch in range(len(order) // size):
                assert len(set(order[epoch * size : (epoch + 1) * size])) == size

    @precondition(lambda self: self.cache.exists())
    @rule()
    def what_is_in_the_cache_was_computed(self):
        for reference in (0.0, 0.5):
            copy = self.home / "copy"
            shutil.copytree(self.cache, copy)
            found = ReferenceCache(copy, {"reference": reference})
            for row in DATA:
                if (values := found.get(row)) is not None:
                    assert torch.equal(values, log_prob(row, reference)), "another value than was computed"
            assert not [file for file in found.damaged if file.exists()]
            shutil.rmtree(copy)


History.TestCase.settings = settings(
    max_examples=20,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestHistory = History.TestCase
