"""`--where`: a condition on runs, such as `length == 256 and attention.top_k_ratio in [0.25, 0.5]`.

Python's syntax with nothing in it but columns, values, comparisons, and / or / not, in, parentheses and
arithmetic. It is parsed, never executed: what stands in it can call nothing. A missing value (NaN too) is
equal to nothing, smaller or larger than nothing, and not true; `x == null` finds it, and `!=` and `not` keep it.
"""

from __future__ import annotations

import ast
import math
import operator
import re
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pandas as pd

from dsabench.errors import ScopeError
from dsabench.spec.messages import nearest

MAX_LENGTH = 2000
"""Characters of a condition."""

Kind = str
"""`number`, `text`, `boolean` or `time`; `missing` (a column without values) and `null` go with any of them."""

_STRING = r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\""
_EXPECTED = 'expected a comparison such as length == 256 or attention == "dsa"'
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_VALUES: dict[str, bool | None] = {"true": True, "false": False, "null": None}
"""Values as YAML and JSON write them; Python's are constants already."""


class _Node(NamedTuple):
    """A part of the condition: what it gives for a row, {column: value with None for missing}."""

    kind: Kind
    value: Callable[[dict[str, Any]], Any]
    text: str
    column: bool = False


def matching(runs: pd.DataFrame, query: str) -> pd.DataFrame:
    """The rows for which the condition holds, in their order; perhaps none.

    Raises:
        ScopeError: the condition cannot be read, names no column, or compares what cannot be compared.
    """
    names: dict[str, str] = {}

    def placeholder(match: re.Match[str]) -> str:
        if not match[0].startswith("`"):
            return match[0]
        return names.setdefault(match[0][1:-1], f"__column_{len(names)}")

    if len(query) > MAX_LENGTH:
        raise ScopeError(f"--where: {len(query)} characters; at most {MAX_LENGTH} are accepted")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in strings
            tree = ast.parse(re.sub(f"{_STRING}|`[^`]*`", placeholder, query).strip(), mode="eval").body
        reader = _Reader(runs, query, {short: name for name, short in names.items()})
        condition = reader.truth(tree)
        columns = {name: reader.cells(name) for name in reader.used}
        rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
        kept = [condition.value(row) for row in rows] if columns else [condition.value({})] * len(runs)
    except SyntaxError as error:
        why = _habit(query) or f": {error.msg}"
        raise ScopeError(f"--where {_short(query)} cannot be read{why}; {_EXPECTED}") from error
    except (RecursionError, MemoryError, ValueError) as error:  # nested too deep, or a null character
        if isinstance(error, ScopeError):
            raise
        raise ScopeError(f"--where {_short(query)} cannot be read; {_EXPECTED}") from error
    return runs[pd.Series(kept, index=runs.index, dtype=bool)]


def _habit(query: str) -> str:
    """What other languages would have written."""
    bare = re.sub(_STRING, "", query)
    if re.search(r"(?<![=!<>])=(?!=)", bare):
        return ": a comparison is written =="
    if "&&" in bare or "||" in bare:
        return ": write `and` and `or`"
    return ": write !=" if "<>" in bare else ": write `not`" if re.search(r"!(?!=)", bare) else ""


def _short(query: str) -> str:
    text = repr(query)
    return text if len(text) <= 80 else text[:77] + "..."


class _Reader:
    """Turns the syntax tree of a condition into a function of a row, refusing everything it does not know."""

    def __init__(self, runs: pd.DataFrame, query: str, placeholders: dict[str, str]) -> None:
        self.runs, self.query, self.placeholders = runs, query, placeholders
        self.columns = [str(column) for column in runs.columns]
        self.used: dict[str, Kind] = {}

    def truth(self, node: ast.expr) -> _Node:
        """A part that must be true or false of a run."""
        found = self.read(node)
        if found.kind not in ("boolean", "missing"):
            raise self.error(f"{found.text} is not true or false of a run", _EXPECTED)
        value = found.value
        return _Node("boolean", lambda row: value(row) is True, found.text)

    def read(self, node: ast.expr) -> _Node:
        if isinstance(node, ast.Name | ast.Attribute):
            return self.column(node)
        if isinstance(node, ast.Constant):
            return self.constant(node)
        if isinstance(node, ast.BoolOp):
            every = isinstance(node.op, ast.And)
            return self.joined([self.truth(value) for value in node.values], every, node)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):  # as pandas writes it
            if isinstance(node.left, ast.Constant) or isinstance(node.right, ast.Constant):
                raise self.error(f"{self.source(node)} is computed first", "write `and` and `or`")
            return self.joined([self.truth(node.left), self.truth(node.right)], isinstance(node.op, ast.BitAnd), node)
        if isinstance(node, ast.UnaryOp):
            return self.unary(node)
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            return self.arithmetic(node)
        if isinstance(node, ast.Compare):
            return self.compare(node)
        raise self.error(f"{self.source(node)} is not accepted", _EXPECTED)

    def column(self, node: ast.Name | ast.Attribute) -> _Node:
        """A column by its name; a spec field's path is one name."""
        parts: list[str] = []
        inner: ast.expr = node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if not isinstance(inner, ast.Name):
            raise self.error(f"{self.source(node)} is not accepted", _EXPECTED)
        name = ".".join([self.placeholders.get(inner.id, inner.id), *reversed(parts)])
        if name in self.columns:
            kind = self.used.setdefault(name, _kind(self.runs[name]))
            return _Node(kind, operator.itemgetter(name), name, True)
        if name in _VALUES:
            return self.constant(ast.Constant(_VALUES[name]))
        near = nearest(name, self.columns)
        hint = f"did you mean {near}?" if near else f'text is written in quotes: "{name}"'
        raise self.error(f"no column {name}", hint)

    def constant(self, node: ast.Constant) -> _Node:
        value = node.value
        if value is not None and type(value) not in (bool, int, float, str):
            raise self.error(f"{self.source(node)} is not accepted", _EXPECTED)
        kinds = {bool: "boolean", int: "number", float: "number", str: "text"}
        return _Node(kinds.get(type(value), "null"), lambda row: value, "null" if value is None else self.source(node))

    def joined(self, parts: list[_Node], every: bool, node: ast.expr) -> _Node:
        both = all if every else any
        return _Node("boolean", lambda row: both(part.value(row) for part in parts), self.source(node))

    def unary(self, node: ast.UnaryOp) -> _Node:
        if isinstance(node.op, ast.Not | ast.Invert):
            truth = self.truth(node.operand).value
            return _Node("boolean", lambda row: not truth(row), self.source(node))
        found = self.number(node.operand)
        sign = -1 if isinstance(node.op, ast.USub) else 1
        return _Node("number", lambda row: _computed(operator.mul, sign, found.value(row)), self.source(node))

    def arithmetic(self, node: ast.BinOp) -> _Node:
        left, right, compute = self.number(node.left), self.number(node.right), _ARITHMETIC[type(node.op)]
        return _Node("number", lambda row: _computed(compute, left.value(row), right.value(row)), self.source(node))

    def number(self, node: ast.expr) -> _Node:
        found = self.read(node)
        if found.kind not in ("number", "missing"):
            raise self.error(f"{found.text} is not a number to compute with")
        return found

    def compare(self, node: ast.Compare) -> _Node:
        parts = []
        left: ast.expr = node.left
        for op, right in zip(node.ops, node.comparators, strict=True):  # 64 < length <= 256
            parts.append(self.comparison(left, op, right))
            left = right
        return self.joined(parts, True, node)

    def comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> _Node:
        if isinstance(op, ast.In | ast.NotIn):
            return self.membership(left, right, isinstance(op, ast.In))
        if isinstance(right, ast.List | ast.Tuple | ast.Set):
            raise self.error(f"{self.source(right)} is a list", "write `in`")
        a, b = self.read(left), self.read(right)
        a, b = self.alike(a, b), self.alike(b, a)
        if isinstance(op, ast.Is | ast.IsNot):
            op = ast.Eq() if isinstance(op, ast.Is) else ast.NotEq()
        equal, different = isinstance(op, ast.Eq), isinstance(op, ast.NotEq)
        if not (equal or different) and (unordered := [part for part in (a, b) if part.kind in ("boolean", "null")]):
            raise self.error(f"{unordered[0].text} has no order")
        if "null" in (a.kind, b.kind):
            return _Node("boolean", lambda row: (a.value(row) is None and b.value(row) is None) == equal, "")
        compare = _COMPARISONS[type(op)]

        def holds(row: dict[str, Any]) -> bool:
            one, other = a.value(row), b.value(row)
            return different if one is None or other is None else compare(one, other)

        return _Node("boolean", holds, "")

    def membership(self, left: ast.expr, right: ast.expr, wanted: bool) -> _Node:
        part = self.read(left)
        if isinstance(right, ast.List | ast.Tuple | ast.Set):
            options = [self.alike(self.read(item), part) for item in right.elts]
            null = any(option.kind == "null" for option in options)

            def among(row: dict[str, Any]) -> bool:
                value = part.value(row)
                found = null if value is None else any(value == option.value(row) for option in options)
                return found == wanted

            return _Node("boolean", among, "")
        whole = self.read(right)
        if {part.kind, whole.kind} - {"text", "missing"}:
            raise self.error(f"{self.source(right)} is no list", "write one as in length in [64, 128]")

        def contains(row: dict[str, Any]) -> bool:
            piece, text = part.value(row), whole.value(row)
            return (piece is not None and text is not None and piece in text) == wanted

        return _Node("boolean", contains, "")

    def alike(self, part: _Node, other: _Node) -> _Node:
        """`part` as something that can be compared with `other`: text beside a time is read as one."""
        if {part.kind, other.kind} & {"missing", "null"} or part.kind == other.kind:
            return part
        if {part.kind, other.kind} == {"time", "text"}:
            if part.kind == "time" or part.column:
                return part
            try:
                moment = datetime.fromisoformat(part.value({}))
            except ValueError:
                raise self.error(f"{part.text} is not a time", "expected one such as '2026-01-31 12:00'") from None
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            return _Node("time", lambda row: moment, part.text)
        raise self.error(f"{part.text} ({_holds(part)}) cannot be compared with {other.text} ({_holds(other)})")

    def cells(self, name: str) -> list[Any]:
        """The column's values as Python's own, None for a missing one."""
        values = self.runs[name].astype(object)
        return [None if missing else value for value, missing in zip(values, values.isna(), strict=True)]

    def source(self, node: ast.expr) -> str:
        text = ast.unparse(node)
        for short, name in self.placeholders.items():
            text = text.replace(short, f"`{name}`")
        return text

    def error(self, problem: str, hint: str = "") -> ScopeError:
        return ScopeError(f"--where {_short(self.query)}: {problem}{hint and f'; {hint}'}")


def _kind(values: pd.Series[Any]) -> Kind:
    if not values.notna().any():
        return "missing"
    if pd.api.types.is_bool_dtype(values.dtype):
        return "boolean"
    if pd.api.types.is_numeric_dtype(values.dtype):
        return "number"
    return "time" if pd.api.types.is_datetime64_any_dtype(values.dtype) else "text"


def _computed(compute: Callable[[Any, Any], Any], one: Any, other: Any) -> Any:
    """The result, or None (missing) where there is none: a missing operand, a division by zero, no number."""
    if one is None or other is None:
        return None
    try:
        result = compute(one, other)
        return None if math.isnan(result) else result
    except (ZeroDivisionError, OverflowError):
        return None


def _holds(part: _Node) -> str:
    return {"number": "a number", "text": "text", "boolean": "true or false", "time": "a time"}[part.kind]
