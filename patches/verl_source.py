"""Looks things up in a folder of verl's source without importing it: what is where, and its text."""

import ast
import hashlib
from functools import cache, cached_property
from pathlib import Path

import yaml

DEFINED = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class VerlSource:
    """A verl in a folder.

    Args:
        folder: holds `verl/`: an unpacked wheel, a checkout, or the site-packages of an environment.

    Raises:
        ValueError: there is no verl in it.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        if not (self.folder / "verl" / "__init__.py").is_file():
            raise ValueError(f"{folder} holds no verl/; name the folder that a wheel of verl was unpacked in.")
        self.parsed = cache(self._parsed)

    def file(self, module: str) -> Path | None:
        """The file of a module, the folder of a package without one, or None."""
        place = self.folder / module.replace(".", "/")
        found = (place.with_suffix(".py"), place / "__init__.py", place)
        return next((path for path in found if path.is_file() or (path is place and path.is_dir())), None)

    def split(self, dotted: str) -> tuple[str, str] | None:
        """(module, name in it) of a dotted name whose longest part that is a module is taken; None if none is."""
        dotted, _, name = dotted.partition(":")
        parts = dotted.split(".")
        for length in range(len(parts), 0, -1):
            if self.file(".".join(parts[:length])):
                return ".".join(parts[:length]), ".".join([*parts[length:], *([name] if name else [])])
        return None

    def find(self, symbol: str) -> str | None:
        """The source of `module:name` or `module:Class.attribute`, as `inspect.getsource` gives it.

        A name that a module imports is looked up where it comes from; an attribute in the class, its bases and what
        its methods assign to `self`. "" is a module, or a value that has no source of its own; None is not there.
        """
        module, _, name = symbol.partition(":")
        if not name:
            return "" if self.file(module) else None
        found = self._at(module, name.split("."))
        return None if found is None else self._text(*found)

    def hash(self, symbol: str) -> str | None:
        """SHA-256 of what `find` gives, None where that is no function or class."""
        text = self.find(symbol)
        return hashlib.sha256(text.encode()).hexdigest() if text else None

    @cached_property
    def settings(self) -> dict[str, object]:
        """Every key of verl's composed configurations with its default (of a section None), FSDP's first."""
        found: dict[str, object] = {}
        files = (self.folder / "verl/trainer/config").glob("_generated_ppo_*.yaml")
        for file in sorted(files, key=lambda file: (file.name == "_generated_ppo_trainer.yaml", file.name)):
            _flatten(yaml.safe_load(file.read_text()), "", found)
        return found

    @cached_property
    def text(self) -> str:
        """All of verl's Python."""
        return "\n".join(path.read_text() for path in sorted((self.folder / "verl").rglob("*.py")))

    def _parsed(self, module: str) -> tuple[ast.Module, list[str]] | None:
        file = self.file(module)
        if file is None or file.is_dir():
            return None
        text = file.read_text()
        return ast.parse(text), text.splitlines(keepends=True)

    def _at(self, module: str, names: list[str]) -> tuple[str, ast.AST | None] | None:
        """(module, node) of a name; the node is None where it has no source of its own."""
        parsed = self.parsed(module)
        if parsed is None:
            inner = self.file(f"{module}.{names[0]}")
            return ((f"{module}.{names[0]}", None) if len(names) == 1 else None) if inner else None
        found = self._global(module, parsed[0], names[0])
        for name in names[1:]:
            if found is None or not isinstance(found[1], ast.ClassDef):
                return None
            found = self._member(found[0], found[1], name)
        return found

    def _global(self, module: str, tree: ast.Module, name: str) -> tuple[str, ast.AST | None] | None:
        for node in _statements(tree.body):
            if isinstance(node, DEFINED) and node.name == name:
                return module, node
            if isinstance(node, ast.ImportFrom | ast.Import):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return self._imported(module, node, alias.name)
                    if alias.name == "*" and isinstance(node, ast.ImportFrom):
                        starred = self._imported(module, node, name)
                        if starred is not None:
                            return starred
            if name in _assigned(node):
                return module, None
        inner = f"{module}.{name}"
        return (inner, None) if self.file(inner) else None

    def _imported(self, module: str, node: ast.ImportFrom | ast.Import, name: str) -> tuple[str, ast.AST | None] | None:
        if isinstance(node, ast.Import):
            return module, None
        file = self.file(module)
        parts = module.split(".") if file and file.name == "__init__.py" else module.split(".")[:-1]
        base = ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
        source = base if node.level else node.module or ""
        if not source.startswith("verl"):
            return module, None
        return self._at(source, [name])

    def _member(self, module: str, cls: ast.ClassDef, name: str) -> tuple[str, ast.AST | None] | None:
        for node in _statements(cls.body):
            if isinstance(node, DEFINED) and node.name == name:
                return module, node
            if name in _assigned(node):
                return module, None
        for node in ast.walk(cls):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr == name:
                return module, None
        for base in cls.bases:
            if isinstance(base, ast.Name):
                parsed = self.parsed(module)
                found = self._global(module, parsed[0], base.id) if parsed else None
                if found and isinstance(found[1], ast.ClassDef):
                    member = self._member(found[0], found[1], name)
                    if member is not None:
                        return member
        return None

    def _text(self, module: str, node: ast.AST | None) -> str:
        parsed = self.parsed(module)
        if not isinstance(node, DEFINED) or parsed is None:
            return ""
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        return "".join(parsed[1][first - 1 : node.end_lineno])


def _statements(body: list[ast.stmt]) -> list[ast.stmt]:
    """Of a body, and of what is tried or chosen in it; what is defined last comes first."""
    found: list[ast.stmt] = []
    for node in body:
        if isinstance(node, ast.If | ast.Try | ast.With):
            handlers = [handler.body for handler in getattr(node, "handlers", [])]
            parts = [node.body, *handlers, getattr(node, "orelse", []), getattr(node, "finalbody", [])]
            found += [each for part in parts for each in reversed(_statements(part))]
        else:
            found.append(node)
    return found[::-1]


def _assigned(node: ast.stmt) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {
        inner.id
        for target in targets
        if target is not None
        for inner in ast.walk(target)
        if isinstance(inner, ast.Name)
    }


def _flatten(section: object, prefix: str, found: dict[str, object]) -> None:
    if isinstance(section, dict):
        for key, value in section.items():
            name = f"{prefix}{key}"
            found[name] = None if isinstance(value, dict) else value
            _flatten(value, f"{name}.", found)
