"""What a mutant may be: the small changes that `tests/mutants.py` makes, as edits of a source's text."""

import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

OPERATORS: dict[type, tuple[str, tuple[str, ...]]] = {
    ast.Add: ("+", ("-",)),
    ast.Sub: ("-", ("+",)),
    ast.Mult: ("*", ("/",)),
    ast.Div: ("/", ("*",)),
    ast.FloorDiv: ("//", ("*",)),
    ast.Mod: ("%", ("//",)),
    ast.BitAnd: ("&", ("|",)),
    ast.BitOr: ("|", ("&",)),
    ast.And: ("and", ("or",)),
    ast.Or: ("or", ("and",)),
    ast.Lt: ("<", ("<=", ">")),
    ast.LtE: ("<=", ("<",)),
    ast.Gt: (">", (">=", "<")),
    ast.GtE: (">=", (">",)),
    ast.Eq: ("==", ("!=",)),
    ast.NotEq: ("!=", ("==",)),
    ast.In: ("in", ("not in",)),
    ast.NotIn: ("not in", ("in",)),
    ast.Is: ("is", ("is not",)),
    ast.IsNot: ("is not", ("is",)),
}
PREFIXES: dict[type, str] = {ast.USub: r"-\s*", ast.Not: r"not\b\s*", ast.Invert: r"~\s*"}
PAIRS = (("sum", "mean"), ("max", "min"), ("amax", "amin"), ("any", "all"))
PARTNERS = dict(PAIRS) | {after: before for before, after in PAIRS}
DROPPED = {"clamp", "square", "abs", "abs_", "sqrt", "log", "exp", "sign", "detach"}
AXES = {"unsqueeze", "view", "flatten"}  # calls whose -1 is 1 for two axes
UNTESTED = {"strict", "flush", "indent", "encoding", "exist_ok", "parents", "missing_ok"}  # keywords
NAMED = re.compile(r"_share|_?require_\w+|print")  # calls whose strings are what messages say
PREFIX_CONSTANTS = {"PREFIX", "SUMS"}  # of metrics' names
NAME = re.compile(r"f?\"[\w{}/]+\"")


@dataclass(frozen=True)
class Edit:
    """Bytes ``start`` to ``end`` of a source replaced by ``text``; the lines they stand in, before and after."""

    start: int
    end: int
    text: str
    line: int
    before: str
    after: str

    def apply(self, source: str) -> str:
        content = source.encode()
        return (content[: self.start] + self.text.encode() + content[self.end :]).decode()


def edits(source: str, functions: Sequence[str] = ()) -> list[Edit]:
    """Every edit of the source, or of its named functions, in the order of the text; each one parses and differs."""
    tree = ast.parse(source)
    whole, found = ast.dump(tree), _Edits(source)
    for node in tree.body:
        if not functions or getattr(node, "name", None) in functions:
            found.visit(node)
    kept = {}
    for edit in found.edits:
        with suppress(SyntaxError):
            if ast.dump(ast.parse(edit.apply(source))) != whole:
                kept[edit.start, edit.end, edit.text] = edit
    return [kept[place] for place in sorted(kept)]


class _Edits(ast.NodeVisitor):
    def __init__(self, source: str):
        self.source = source.encode()
        self.starts = [0]
        for line in self.source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.edits: list[Edit] = []
        self.inside = 0  # functions
        self.pool: dict[
            tuple[str, bool], list[str]
        ] = {}  # role and whether it is an f-string -> names in this function

    def span(self, node: Any) -> tuple[int, int]:
        return self.starts[node.lineno - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.AST) -> str:
        return self.source[slice(*self.span(node))].decode()

    def replace(self, start: int, end: int, text: str) -> None:
        first = sum(place <= start for place in self.starts) - 1
        last = sum(place < end for place in self.starts)
        begin, stop = self.starts[first], self.starts[last]
        after = self.source[begin:start] + text.encode() + self.source[end:stop]
        lines = (" ".join(part.decode().split()) for part in (self.source[begin:stop], after))
        self.edits.append(Edit(start, end, text, first + 1, *lines))

    def between(self, left: ast.AST, operator: ast.AST, right: ast.AST) -> None:
        """Other operators between two operands."""
        if type(operator) not in OPERATORS:
            return
        (_, start), (end, _) = self.span(left), self.span(right)
        gap = re.sub(rb"#[^\n]*", lambda comment: b" " * len(comment[0]), self.source[start:end]).decode("latin-1")
        symbol, others = OPERATORS[type(operator)]
        if place := re.search(re.escape(symbol).replace(r"\ ", r"\s+"), gap):
            for other in others:
                self.replace(start + place.start(), start + place.end(), other)

    def negate(self, node: ast.AST | None) -> None:
        """A minus before an arithmetic expression that is no text or list."""
        arithmetic = isinstance(node, ast.BinOp) and isinstance(
            node.op, ast.Add | ast.Sub | ast.Mult | ast.Div | ast.Pow
        )
        other = ast.JoinedStr | ast.List | ast.Tuple
        if node and arithmetic and not any(isinstance(part, other) or _is_text(part) for part in ast.walk(node)):
            self.replace(*self.span(node), f"-({self.text(node)})")

    def rename(self, node: ast.AST) -> None:
        for role, name in _names(node):
            text, pool = self.text(name), self.pool.get((role, isinstance(name, ast.JoinedStr)), [])
            if text in pool and len(pool) > 1:
                self.replace(*self.span(name), pool[(pool.index(text) + 1) % len(pool)])

    def condition(self, test: ast.expr, *values: str) -> None:
        for value in values:
            self.replace(*self.span(test), value)

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.Raise | ast.Assert | ast.Import | ast.ImportFrom | ast.JoinedStr):
            self.rename(node)
        elif not isinstance(node, ast.Expr) or not _is_text(node.value):
            super().visit(node)
            self.rename(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        kept, self.pool = self.pool, {}
        for part in ast.walk(node):
            for role, name in _names(part):
                pool = self.pool.setdefault((role, isinstance(name, ast.JoinedStr)), [])
                if NAME.fullmatch(text := self.text(name)) and text not in pool:
                    pool.append(text)
        self.inside += 1
        for part in (*node.args.defaults, *(value for value in node.args.kw_defaults if value), *node.body):
            self.visit(part)
        self.inside -= 1
        self.pool = kept

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value:
            self.negate(node.value)
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        if not any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets):
            self.negate(node.value)
            self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        self.negate(node.value)
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Call) or self.text(node.value.func) != "print":
            if isinstance(node.value, ast.Call):
                self.replace(*self.span(node), "pass")
            self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.replace(*self.span(node), "pass")
        self.between(node.target, node.op, node.value)
        self.generic_visit(node)

    def visit_Dict(self, node: ast.Dict) -> None:
        for key, value in zip(node.keys, node.values, strict=True):
            if key and not isinstance(key, ast.BinOp):  # a prefix + a name
                self.visit(key)
            self.negate(value)
            self.visit(value)

    def visit_If(self, node: ast.If | ast.IfExp) -> None:
        self.condition(node.test, "True", "False")
        self.generic_visit(node)

    visit_IfExp = visit_If

    def visit_While(self, node: ast.While) -> None:
        self.condition(node.test, "False")
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self.condition(test, "True")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        text = any(isinstance(part, ast.JoinedStr) or _is_text(part) for part in (node.left, node.right))
        text |= isinstance(node.left, ast.Name) and node.left.id in PREFIX_CONSTANTS
        if not text and (self.inside or not isinstance(node.op, ast.BitOr)):  # outside of functions | joins types
            self.between(node.left, node.op, node.right)
        self.visit(node.left)
        if isinstance(node.op, ast.Pow) and isinstance(node.right, ast.Constant):
            self.replace(*self.span(node.right), repr(node.right.value - 1))  # type: ignore[operator]
        else:
            self.visit(node.right)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.between(left, node.op, right)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        for left, operator, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            self.between(left, operator, right)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        start, _ = self.span(node)
        if prefix := re.match(PREFIXES.get(type(node.op), r"$^"), self.text(node)):
            self.replace(start, start + prefix.end(), "")
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.visit(node.value)
        shape = isinstance(node.value, ast.Attribute) and node.value.attr == "shape"
        self.visit(node.slice.operand if shape and isinstance(node.slice, ast.UnaryOp) else node.slice)

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg not in UNTESTED:
            axis = node.arg == "dim" and isinstance(node.value, ast.UnaryOp)  # the last axis is 1, of two
            self.visit(node.value.operand if axis else node.value)  # type: ignore[attr-defined]

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else self.text(node.func)
        (start, stop), (_, end) = self.span(node.func), self.span(node)
        if name in PARTNERS and (isinstance(node.func, ast.Attribute) or name not in ("sum", "mean")):
            self.replace(stop - len(name), stop, PARTNERS[name])
        if name in DROPPED and isinstance(node.func, ast.Attribute):
            module = self.text(node.func.value) in ("math", "torch")
            self.replace(
                start if module else self.span(node.func.value)[1], end, self.text(node.args[0]) if module else ""
            )
        self.visit(node.func)
        for argument in node.args[: 1 if name == "isinstance" else None]:
            self.visit(argument.operand if name in AXES and isinstance(argument, ast.UnaryOp) else argument)
        for keyword in node.keywords:
            self.visit(keyword)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self.replace(*self.span(node), str(not node.value))
        elif isinstance(node.value, int | float):
            self.replace(*self.span(node), repr(node.value + 1))


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _names(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """The strings that choose or name something, with their role: compared, keys, arguments."""
    parts: Iterable[ast.AST | None] = ()
    match node:
        case ast.Compare():
            parts = (node.left, *node.comparators)
        case ast.Dict():
            parts = (key.right if isinstance(key, ast.BinOp) else key for key in node.keys)
        case ast.Subscript():
            parts = (node.slice,)
        case ast.Tuple():
            parts = node.elts
        case ast.Call() if not NAMED.fullmatch(ast.unparse(node.func)):
            parts = node.args
    for part in parts:
        if part is not None and (isinstance(part, ast.JoinedStr) or _is_text(part)):
            yield type(node).__name__, part
