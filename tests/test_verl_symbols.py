"""What touches verl in a package is found, whichever way it does."""

import pytest

from patches import verl_symbols
from patches.verl_source import VerlSource
from patches.verl_symbols import Symbols

VERL = {
    "__init__.py": "",
    "utils/__init__.py": "",
    "utils/config.py": "def check():\n    pass\n\n\ndef other():\n    pass\n",
    "utils/device.py": "class Device:\n    def pick(self):\n        pass\n\n\nTABLE = {}\n",
    "trainer/__init__.py": "",
    "trainer/ppo/__init__.py": "",
    "trainer/ppo/v1/__init__.py": "",
    "trainer/ppo/v1/trainer_base.py": (
        "class PPOTrainer:\n    def fit(self):\n        self.kept = 1\n\n    def step(self):\n        pass\n\n"
        "    def unused(self):\n        pass\n"
    ),
    "trainer/ppo/v1/trainer_sync.py": (
        "from verl.trainer.ppo.v1.trainer_base import PPOTrainer\n\n\nclass PPOTrainerSync(PPOTrainer):\n"
        '    def on_end(self):\n        self.said = "actor/loss"\n'
    ),
    "trainer/config/_generated_ppo_trainer.yaml": (
        "trainer:\n  nnodes: 1\n  mode: sync\n  deep:\n    key: 0\ndata:\n  seed: 0\n  unused: 0\n"
    ),
}
PACKAGE = {
    "host/register.py": 'def _device(device):\n    device.TABLE\n\n\nHOOKS = {"verl.utils.device": _device}\n',
    "host/cpu/__init__.py": '_HOOKS = {"verl.utils.config": "fgrpo_plugin.host.cpu.config:register"}\n',
    "host/cpu/config.py": 'def register(module):\n    wrap(module, "other", 1)\n',
    "host/trainer.py": (
        "class News:\n    def on_end(self):\n        super().on_end()\n\n\n"
        "class FDivergenceTrainer(News):\n    def fit(self):\n        self._own()\n"
        "        getattr(self, 'kept', None)\n\n    def _own(self):\n        pass\n"
    ),
    "host/offline.py": "class Offline(FDivergenceTrainer):\n    def step(self):\n        pass\n",
    "conf/fgrpo/one.yaml": "data:\n  seed: 3\n  ours: 1\ntarget: verl.utils.device.Device\n",
}
FOUND = {
    "verl.utils.device": "host/register.py",
    "verl.utils.device:TABLE": "host/register.py",
    "verl.utils.device:Device": "conf/fgrpo/one.yaml",
    "verl.utils.config": "host/cpu/__init__.py",
    "verl.utils.config:other": "host/cpu/config.py",
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer.fit": "host/trainer.py",
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer.kept": "host/trainer.py",
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer.step": "host/offline.py",
    "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync.on_end": "host/trainer.py",
}


@pytest.fixture
def symbols(tmp_path):
    def write(folder, files):
        for name, text in files.items():
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_text(text)

    write("verl", VERL)
    write("package", PACKAGE)

    def of(text: str = "") -> Symbols:
        write("package", {"planted.py": text})
        return Symbols(tmp_path / "package", VerlSource(tmp_path))

    return of


def test_hooks_classes_texts_and_groups_are_read(symbols):
    found = symbols()
    assert {name: place for name, places in found.symbols.items() for place in places if place in FOUND[name]} == FOUND
    assert found.symbols.keys() == FOUND.keys()
    assert found.settings.keys() == {"data.seed"} and not found.metrics


@pytest.mark.parametrize(
    ("text", "symbol"),
    [
        ("from verl.utils.config import check\n", "verl.utils.config:check"),
        ("def f():\n    from verl.utils import config as c\n    c.check()\n", "verl.utils.config:check"),
        ("import verl.utils.config as c\nc.check()\n", "verl.utils.config:check"),
        ("import verl.trainer.ppo\n", "verl.trainer.ppo"),
        ("from verl.utils.device import Device\nDevice.pick\n", "verl.utils.device:Device.pick"),
        (
            "from verl.utils.device import Device\nclass D(Device):\n    def pick(self): 0\n",
            "verl.utils.device:Device.pick",
        ),
        ('name = "verl.utils.device:Device.pick"\n', "verl.utils.device:Device.pick"),
        ('name = "verl.utils.config.check"\n', "verl.utils.config:check"),
    ],
)
def test_a_further_touch_is_found(symbols, text, symbol):
    before = symbols().symbols.get(symbol, set())
    assert symbols(text).symbols[symbol] == before | {"planted.py"}


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('select("trainer.nnodes")\n', "trainer.nnodes"),
        ('words = ["+trainer.nnodes=2"]\n', "trainer.nnodes"),
        ('part = "trainer.deep"\nselect(f"{part}.key")\n', "trainer.deep.key"),
        ("def f(config):\n    deep = config.trainer.deep\n    deep.key.upper()\n", "trainer.deep.key"),
        ("class A:\n    def f(self):\n        self.config.trainer.mode\n", "trainer.mode"),
    ],
)
def test_a_setting_is_found_as_text_and_as_attributes(symbols, text, key):
    assert symbols(text).settings[key] == {"planted.py"}


def test_a_metric_is_a_text_that_verl_has_too(symbols):
    assert symbols('read = ["actor/loss", "actor/ours"]\n').metrics == {"actor/loss": {"planted.py"}}


def test_an_attribute_of_an_object_that_verl_hands_over_is_of_its_class(symbols, monkeypatch):
    monkeypatch.setattr(verl_symbols, "DUCKS", {"pick": "verl.utils.device:Device"})
    for text in ("thing.pick\n", 'getattr(thing, "pick")\n'):
        assert symbols(text).symbols["verl.utils.device:Device.pick"] == {"planted.py"}


@pytest.mark.parametrize(
    "text", ["from verl.none import x\n", 'x = "verl.plugins"\n', "import verl\n", "from os import path\n"]
)
def test_what_verl_does_not_have_is_no_symbol(symbols, text):
    assert symbols(text).symbols.keys() == FOUND.keys()
