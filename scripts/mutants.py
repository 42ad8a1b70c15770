"""Small faults put into a source file, one at a time: the operators of mutation testing.

Those of the literature (Offutt and others, "An experimental determination of sufficient mutant operators",
1996): arithmetic, comparisons and their boundaries, boolean operators, negated conditions, constants; and,
as in other tools for Python, removed statements, return values and keyword arguments, and functions that
have an opposite. Nothing is changed in annotations, decorators, docstrings, assertions, `__all__`, and in
text for people, at which tests of messages look: f-strings, and literals with a space.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

_OPERATORS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.LShift: (ast.RShift,),
    ast.RShift: (ast.LShift,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.BitXor: (ast.BitAnd,),
    # The boundary, and the opposite.
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
}
_PAIRS = (
    ("min", "max"),
    ("any", "all"),
    ("amin", "amax"),
    ("argmin", "argmax"),
    ("minimum", "maximum"),
    ("floor", "ceil"),
    ("sin", "cos"),
    ("lower", "upper"),
    ("startswith", "endswith"),
    ("removeprefix", "removesuffix"),
    ("partition", "rpartition"),
    ("search", "fullmatch"),
    ("lstrip", "rstrip"),
    ("sub", "add"),
    ("sub_", "add_"),
    ("mul", "div"),
    ("mul_", "div_"),
)
_OPPOSITES = dict(_PAIRS) | {b: a for a, b in _PAIRS}
#: Calls that give back their first argument, nearly.
_IDENTITIES = {"abs", "sorted", "reversed", "sqrt", "round"}


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        name: where and what, independent of line numbers: "function: `before` → `after`".
        lines: first and last line of the statement that holds it.
        function: the outermost function around it, "" outside of functions: it then acts on import.
        text: the whole file with the fault.
    """

    name: str
    lines: tuple[int, int]
    function: str
    text: str


def mutants(text: str) -> list[Mutant]:
    """All mutants of a source file, in its order, each name once."""
    raw = text.encode()
    starts = [0]
    for line in raw.split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)
    found: dict[str, Mutant] = {}
    for place, node, after in _Walk().faults(ast.parse(text), _Place()):
        start = starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        end = starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
        before = " ".join(raw[start:end].decode().split())
        mutated = (raw[:start] + after.encode() + raw[end:]).decode()
        base = f"{place.scope or 'import'}: `{before}` → `{after}`"
        name, number = base, 1
        while name in found:
            number += 1
            name = f"{base} ({number})"
        ast.parse(mutated)
        found[name] = Mutant(name, place.lines, place.function, mutated)
    return list(found.values())


@dataclass(frozen=True)
class _Place:
    scope: str = ""
    function: str = ""
    lines: tuple[int, int] = (1, 1)


def _code(node: ast.expr) -> str:
    text = ast.unparse(node)
    return text if isinstance(node, ast.Constant | ast.Name | ast.Call | ast.Attribute) else f"({text})"


def _is_text(node: ast.AST) -> bool:
    """Whether it is meant for people."""
    if isinstance(node, ast.BinOp):
        return _is_text(node.left) or _is_text(node.right)
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value
    )


def _is_type(node: ast.AST) -> bool:
    """Whether `a | b` can only be a union of types."""
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.BitOr) and _is_type(node.left) and _is_type(node.right)
    if isinstance(node, ast.Subscript):
        return _is_type(node.value)
    if isinstance(node, ast.Constant):
        return node.value is None
    return isinstance(node, ast.Name) and (
        node.id in ("int", "float", "bool", "str", "list", "tuple", "dict") or node.id[:1].isupper()
    )


_Fault = tuple[_Place, ast.AST, str]


class _Walk:
    def faults(self, node: ast.AST, place: _Place) -> Iterator[_Fault]:
        """Every fault in a node and below it: where, the node replaced, and by what."""
        if _is_skipped(node) or _is_text(node):
            return
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            yield from self._scope(node, place)
            return
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "cast":
            yield from self.faults(node.args[1], place)
            return
        if isinstance(node, ast.stmt):
            inner = getattr(node, "body", None)
            last = inner[0].lineno - 1 if inner else node.end_lineno
            place = _Place(place.scope, place.function, (node.lineno, max(node.lineno, last or 0)))
        for after in _replacements(node):
            yield place, node, after
        for condition in _conditions(node):
            if not isinstance(condition, ast.Compare | ast.BoolOp | ast.UnaryOp | ast.Constant):
                yield place, condition, f"(not {ast.unparse(condition)})"
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "ctx"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from self.faults(child, place)

    def _scope(self, node: ast.FunctionDef | ast.ClassDef | ast.Lambda, place: _Place) -> Iterator[_Fault]:
        name = "<lambda>" if isinstance(node, ast.Lambda) else node.name
        parent = f"{place.scope}." if place.scope else ""
        scope = parent + name if name != "<lambda>" else place.scope
        function = place.function or ("" if isinstance(node, ast.ClassDef) else parent + name)
        inside = _Place(scope, function, (node.lineno, node.lineno))
        outside = _Place(scope, place.function, (node.lineno, node.lineno))
        if isinstance(node, ast.ClassDef):
            parts = [(n, outside) for n in node.body]
        else:
            defaults = [*node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)]
            body = [node.body] if isinstance(node, ast.Lambda) else node.body
            if isinstance(node, ast.Lambda):
                inside = _Place(scope, function, place.lines)
            parts = [(n, outside) for n in defaults] + [(n, inside) for n in body]
        for child, where in parts:
            yield from self.faults(child, where)


def _is_skipped(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
        return True
    if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias":
        return True
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return True
    if isinstance(node, ast.Raise) and "NotImplementedError" in ast.unparse(node):
        return True
    if isinstance(node, ast.keyword) and node.arg == "strict":
        return True
    return isinstance(node, ast.Assert | ast.Import | ast.ImportFrom | ast.Delete)


def _conditions(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        return [node.test]
    if isinstance(node, ast.comprehension):
        return node.ifs
    return node.values if isinstance(node, ast.BoolOp) else []


def _replacements(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.BinOp) and not _is_type(node):
        for other in _OPERATORS.get(type(node.op), ()):
            yield _code(ast.BinOp(node.left, other(), node.right))
    elif isinstance(node, ast.BoolOp):
        for other in _OPERATORS[type(node.op)]:
            yield _code(ast.BoolOp(other(), node.values))
    elif isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            for other in _OPERATORS[type(op)]:
                yield _code(
                    ast.Compare(node.left, [*node.ops[:i], other(), *node.ops[i + 1 :]], node.comparators)
                )
    elif isinstance(node, ast.UnaryOp):
        yield _code(node.operand)
    elif isinstance(node, ast.Constant):
        yield from _constants(node.value)
    elif isinstance(node, ast.Call):
        yield from _calls(node)
    elif isinstance(node, ast.Return):
        if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
            yield "return None"
    elif isinstance(node, ast.Continue):
        yield "break"
    elif isinstance(node, ast.Break):
        yield "continue"
    elif isinstance(node, ast.Expr | ast.Raise):
        yield "pass"
    elif isinstance(node, ast.AugAssign):
        yield "pass"
        for other in _OPERATORS.get(type(node.op), ()):
            yield ast.unparse(ast.AugAssign(node.target, other(), node.value))
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute | ast.Subscript):
        yield "pass"


def _constants(value: object) -> Iterator[str]:
    if isinstance(value, bool):
        yield str(not value)
    elif isinstance(value, int):
        yield str(value + 1)
    elif isinstance(value, float):
        yield repr(value * 2 if value else 1.0)
    elif isinstance(value, str):
        yield "'mutated'" if not value else "''"
    elif isinstance(value, bytes):
        yield "b'mutated'" if not value else "b''"


def _calls(node: ast.Call) -> Iterator[str]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in _OPPOSITES:
        other = _OPPOSITES[name]
        function = (
            ast.Attribute(node.func.value, other, ast.Load())
            if isinstance(node.func, ast.Attribute)
            else ast.Name(other, ast.Load())
        )
        yield _code(ast.Call(function, node.args, node.keywords))
    if name in _IDENTITIES and node.args:
        yield _code(node.args[0])
    for i, keyword in enumerate(node.keywords):
        # `strict=True` is an assertion.
        if keyword.arg not in (None, "strict") and not _is_text(keyword.value):
            yield _code(ast.Call(node.func, node.args, [*node.keywords[:i], *node.keywords[i + 1 :]]))
