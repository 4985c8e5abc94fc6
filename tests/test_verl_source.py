"""Names are found in verl's source as Python would find them, and their text is what `inspect` gives."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from fgrpo_plugin.host.contract import REPLACED_SOURCES, USED_SOURCES
from patches.verl_source import VerlSource

FILES = {
    "verl/__init__.py": "",
    "verl/base.py": (
        "class Base:\n    def kept(self):\n        return 1\n\n    def _set(self):\n        self.made = 2\n"
    ),
    "verl/pack/__init__.py": "from .inner import thing as renamed\nfrom verl.base import *\nfrom os import path\n",
    "verl/pack/inner.py": (
        "from verl.base import Base\nTABLE: dict = {}\nfirst, second = 1, 2\n\n\n"
        "@print\ndef thing():\n    return 3\n\n\n"
        "class Derived(Base):\n    field: int = 0\n\n    async def own(self):\n        pass\n\n\n"
        "try:\n    import fast\nexcept ImportError:\n    def slow():\n        pass\n"
    ),
    "verl/trainer/config/_generated_ppo_trainer.yaml": "trainer:\n  nnodes: 1\n  v1:\n    mode: sync\nnothing: null\n",
    "verl/trainer/config/_generated_ppo_other.yaml": "trainer:\n  nnodes: 2\n  extra: true\n",
}


@pytest.fixture
def verl(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return VerlSource(tmp_path)


@pytest.mark.parametrize(
    ("symbol", "found"),
    [
        ("verl.pack.inner:thing", "@print\ndef thing():\n    return 3\n"),
        ("verl.pack:renamed", "@print\ndef thing():\n    return 3\n"),
        ("verl.pack:Base.kept", "    def kept(self):\n        return 1\n"),
        ("verl.pack.inner:Derived.kept", "    def kept(self):\n        return 1\n"),
        ("verl.pack.inner:Derived.own", "    async def own(self):\n        pass\n"),
        ("verl.pack.inner:slow", "    def slow():\n        pass\n"),
        *((f"verl.pack.inner:{name}", "") for name in ("TABLE", "second", "fast", "Derived.field", "Derived.made")),
        *((name, "") for name in ("verl.pack", "verl.pack:inner", "verl.pack:path", "verl.trainer.config")),
        *((f"verl.pack.inner:{name}", None) for name in ("third", "Derived.other", "thing.x", "TABLE.x")),
        *((name, None) for name in ("verl.none", "verl.pack:thing", "verl.trainer.config:x")),
    ],
)
def test_a_name_is_found_where_it_stands_or_comes_from(verl, symbol, found):
    assert verl.find(symbol) == found
    assert (verl.hash(symbol) is None) == (not found)


def test_a_dotted_name_is_split_at_its_longest_module(verl):
    assert verl.split("verl.pack.inner.Derived.own") == ("verl.pack.inner", "Derived.own")
    assert verl.split("verl.pack.inner:thing") == ("verl.pack.inner", "thing")
    assert verl.split("verl.pack") == ("verl.pack", "") and verl.split("torch.nn") is None


def test_settings_are_those_of_the_composed_configurations_and_the_trainers_own_come_last(verl):
    expected = {"trainer": None, "trainer.nnodes": 1, "trainer.v1": None, "trainer.v1.mode": "sync", "nothing": None}
    assert verl.settings == expected | {"trainer.extra": True}


def test_a_folder_without_verl_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no verl/; name the folder"):
        VerlSource(tmp_path)


def test_every_source_of_the_contract_is_found_in_the_installed_verl():
    installed = VerlSource(Path(find_spec("verl").origin).parents[1])
    known = REPLACED_SOURCES | USED_SOURCES
    assert {name for name, hashes in known.items() if installed.hash(name) not in hashes} == set()
