"""Finds by the syntax of this package what it touches in verl: nothing is listed by hand but what `DUCKS` says.

A symbol is `module:name`, `module:Class.attribute` or a module. Imports, what is read of what was imported, what the
hooks read or replace of the module that they get, names written as text, methods that our classes override or call in
those of verl's, settings and metrics. A name that the pinned verl does not have is no symbol.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import yaml

from patches.verl_source import VerlSource

MIXED_IN = "FDivergenceTrainer"
"""Our class that shims/trainer_mode.py puts in front of verl's trainers: what it, its bases and its subclasses
override, call or read on `self` is a symbol of `TRAINERS`, the first that has it."""
TRAINERS = ("verl.trainer.ppo.v1.trainer_base:PPOTrainer", "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync")

_SERVERS, _LOOPS = "verl.workers.rollout", "verl.experimental"
DUCKS = {
    "get_replicas": f"{_SERVERS}.llm_server:LLMServerManager",
    "servers": f"{_SERVERS}.replica:RolloutReplica",
    "agent_loop_workers": f"{_LOOPS}.agent_loop.agent_loop:AgentLoopManager",
    "reward_loop_workers": f"{_LOOPS}.reward_loop.reward_loop:RewardLoopManager",
    "reward_model_manager": f"{_LOOPS}.reward_loop.reward_loop:RewardLoopManager",
    "rollout_replicas": f"{_LOOPS}.reward_loop.reward_model:RewardModelManager",
    "workers": "verl.single_controller.ray.base:RayWorkerGroup",
    "_dispatch_info": "verl.single_controller.ray.base:RayWorkerGroup",
    "_query_dispatch_info": "verl.single_controller.base.worker:Worker",
    "_init_socket": f"{_SERVERS}.vllm_rollout.bucketed_weight_transfer:BucketedWeightSender",
}
"""Attributes of objects that verl hands over without their class being named here -> the class."""

_DOTTED = re.compile(r"verl(\.\w+)+(:[\w.]+)?")
_METRIC = re.compile(r"[a-z][\w-]*(/[\w@-]+)+")

Found = dict[str, set[str]]
"""Symbol, or key of a setting, or metric -> the files of this package that use it."""


class Symbols:
    """What a package touches in a verl.

    Args:
        package: its folder.
        verl: the verl that it is written for.
    """

    def __init__(self, package: Path, verl: VerlSource):
        self.verl, self.package = verl, package
        self.trees = {
            str(file.relative_to(package)): ast.parse(file.read_text()) for file in sorted(package.rglob("*.py"))
        }
        self.symbols: Found = defaultdict(set)
        self.settings: Found = defaultdict(set)
        self.metrics: Found = defaultdict(set)
        self.hooks = dict(self._hooks())
        self.mixed = self._mixed()
        for place, tree in self.trees.items():
            self._imports(place, tree)
            self._hooked(place, tree)
            self._classes(place, tree)
            self._texts(place, tree)
            self._settings(place, tree)
        for file in sorted(package.rglob("conf/**/*.yaml")):
            self._group(file)

    def _symbol(self, dotted: str, place: str) -> None:
        parts = self.verl.split(dotted)
        if parts and parts[0] != "verl":
            symbol = ":".join(part for part in parts if part)
            if self.verl.find(symbol) is not None:
                self.symbols[symbol].add(place)

    def _imports(self, place: str, tree: ast.Module) -> None:
        names: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "verl":
                for alias in node.names:
                    names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            elif isinstance(node, ast.Import):
                names |= {alias.asname: alias.name for alias in node.names if alias.asname and _is_verl(alias.name)}
                for alias in node.names:
                    self._symbol(alias.name, place) if _is_verl(alias.name) else None
        for dotted in names.values():
            self._symbol(dotted, place)
        for node in ast.walk(tree):
            chain = _chain(node)
            if chain and chain[0] in names:
                self._symbol(".".join([names[chain[0]], *chain[1:]]), place)

    def _hooks(self) -> Iterator[tuple[tuple[str, str], str]]:
        """(file, function) -> the module of verl that it is called with once that is imported."""
        for place in ("host/register.py", "host/cpu/__init__.py"):
            for node in ast.walk(self.trees[place]):
                if not isinstance(node, ast.Dict):
                    continue
                for key, value in zip(node.keys, node.values, strict=True):
                    if not isinstance(key, ast.Constant) or not _is_verl(str(key.value)):
                        continue
                    if isinstance(value, ast.Name):
                        yield (place, value.id), str(key.value)
                    elif isinstance(value, ast.Call):  # _shim("name")
                        yield (f"host/shims/{ast.literal_eval(value.args[0])}.py", "apply"), str(key.value)
                    elif isinstance(value, ast.Constant):  # "fgrpo_plugin.host.cpu.x:function"
                        module, function = str(value.value).split(":")
                        yield (f"{module.partition('.')[2].replace('.', '/')}.py", function), str(key.value)

    def _hooked(self, place: str, tree: ast.Module) -> None:
        for node in ast.walk(tree):
            module = self.hooks.get((place, getattr(node, "name", "")))
            if module is None or not isinstance(node, ast.FunctionDef):
                continue
            self._symbol(module, place)
            given = node.args.args[0].arg
            for inner in ast.walk(node):
                chain = _chain(inner)
                if chain and chain[0] == given:
                    self._symbol(".".join([module, *chain[1:]]), place)
                if isinstance(inner, ast.Call) and any(isinstance(a, ast.Name) and a.id == given for a in inner.args):
                    for argument in inner.args:  # wrap_function_wrapper(module, "Class.method", ...)
                        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                            self._symbol(f"{module}.{argument.value}", place)

    def _mixed(self) -> set[str]:
        """Names of the classes that stand in front of verl's trainer."""
        bases = {
            node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
            for tree in self.trees.values()
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
        }
        found = {MIXED_IN, *bases[MIXED_IN]}
        return found | {name for name, given in bases.items() if given & found}

    def _classes(self, place: str, tree: ast.Module) -> None:
        imported = {
            alias.asname or alias.name: f"{node.module}:{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and _is_verl(node.module or "")
            for alias in node.names
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.ClassDef):
                continue
            bases = [imported[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in imported]
            for name in sorted(_members(node)):
                of = [
                    base
                    for base in TRAINERS
                    if node.name in self.mixed and self.verl.find(f"{base}.{name}") is not None
                ]
                for base in bases + of[:1]:
                    self._symbol(f"{base}.{name}", place)

    def _texts(self, place: str, tree: ast.Module) -> None:
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in DUCKS:
                self._symbol(f"{DUCKS[node.attr]}.{node.attr}", place)
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
                continue
            if node.value in DUCKS:
                self._symbol(f"{DUCKS[node.value]}.{node.value}", place)
            if _DOTTED.fullmatch(node.value):
                self._symbol(node.value, place)
            elif _METRIC.fullmatch(node.value) and f'"{node.value}"' in self.verl.text:
                self.metrics[node.value].add(place)

    def _settings(self, place: str, tree: ast.Module) -> None:
        texts = {
            target.id: value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            for target, value in _pairs(node)
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            said = _said(node, texts)
            if said is not None:
                self._setting(said.lstrip("+~").partition("=")[0], place)
            chain = _chain(node, texts)
            for start in range(len(chain)):
                if chain[start] == "config":
                    self._setting(".".join(chain[start + 1 :]), place)

    def _setting(self, key: str, place: str) -> None:
        # The longest part of it that verl knows: what follows may be a method.
        parts = key.split(".")
        for length in range(len(parts), 1, -1):
            if ".".join(parts[:length]) in self.verl.settings:
                self.settings[".".join(parts[:length])].add(place)
                return

    def _group(self, file: Path) -> None:
        """Keys that a configuration group sets, and the names of verl that its values have."""
        place = str(file.relative_to(self.package))

        def walk(section: object, prefix: str) -> None:
            if isinstance(section, dict):
                for key, value in section.items():
                    walk(value, f"{prefix}{key}.")
            else:
                self._setting(prefix[:-1], place)
            if isinstance(section, str) and _DOTTED.fullmatch(section):
                self._symbol(section, place)

        walk(yaml.safe_load(file.read_text()), "")


def _is_verl(dotted: str) -> bool:
    return dotted.split(".")[0] == "verl"


def _chain(node: ast.AST, texts: dict[str, ast.expr] | None = None, depth: int = 4) -> list[str]:
    """The names of `a.b.c`, where `a` may stand for another such chain; empty if it is none."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return []
    meant = (texts or {}).get(node.id)
    start = _chain(meant, texts, depth - 1) if meant is not None and depth else []
    return (start or [node.id]) + names[::-1]


def _said(node: ast.AST, texts: dict[str, ast.expr], depth: int = 4) -> str | None:
    """A text, with the names in it put in where they stand for texts."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.FormattedValue):
        node = node.value
    if isinstance(node, ast.Name):
        return _said(texts[node.id], texts, depth - 1) if node.id in texts and depth else None
    if isinstance(node, ast.JoinedStr):
        parts = [_said(value, texts, depth) for value in node.values]
        return "".join("*" if part is None else part for part in parts)
    return None


def _pairs(node: ast.Assign) -> Iterator[tuple[ast.expr, ast.expr]]:
    for target in node.targets:
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            yield from zip(target.elts, node.value.elts, strict=False)
        else:
            yield target, node.value


def _members(cls: ast.ClassDef) -> set[str]:
    """What a class defines, and what its methods read of `self`, `super()` or by getattr of them."""
    names = {node.name for node in cls.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    names |= {
        node.target.id for node in cls.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    for node in ast.walk(cls):
        if isinstance(node, ast.Attribute) and _is_self(node.value):
            names.add(node.attr)
        # getattr(self, "name", None)
        if isinstance(node, ast.Call) and len(node.args) > 1 and _is_self(node.args[0]):
            names |= {str(node.args[1].value)} if isinstance(node.args[1], ast.Constant) else set()
    return {name for name in names if not name.startswith("__")}


def _is_self(node: ast.expr) -> bool:
    named = isinstance(node, ast.Name) and node.id == "self"
    return named or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super")
