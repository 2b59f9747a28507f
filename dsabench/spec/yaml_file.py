"""YAML 1.2 files as plain values, with the line of every field.

ruamel.yaml's round-trip loader builds no Python objects from tags; YAML 1.2 makes `1e-3` a number and `no` a string.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from dsabench.errors import SpecError

MAX_BYTES = 100_000
"""The parser takes some seconds for as much, and a long time for brackets in brackets."""

MAX_DEPTH = 100
MAX_NODES = 100_000


_HINTS = {
    "'\\t'": "; indent with spaces, a tab is not accepted there",
    "mapping values are not allowed here": "; write a space after the colon of each field, and quotes around text that "
    "holds ': '",
    "found duplicate key": "; keep one",
}
"""What is said besides to problems that the parser names, by words in them."""


def read(path: Path) -> tuple[Any, dict[str, int]]:
    """The file's content as dicts, lists and scalars, and the 1-based line of each field path in it.

    Raises SpecError for a file that is missing, not UTF-8, not YAML, larger than 100 kB, nested more
    than 100 deep, or that expands (through anchors) to more than 100,000 values.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"{path} is not a UTF-8 text file (byte {error.start})") from error
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise SpecError(f"{path} is larger than 100 kB, which no config is")
    return _parse(text, str(path))


def scalar(text: str, name: str, texts: bool = False) -> Any:
    """The value of a `--set path=TEXT` override: one YAML value, so that 1e-3 is a number and [a, b] a list.

    texts: the items of a list are text, whatever they look like.
    """
    found = _parse(text, name)[0]
    if texts and isinstance(found, list):
        written = YAML(typ="base", pure=True).load(text)
        found = [
            as_written if isinstance(as_written, str) else item for as_written, item in zip(written, found, strict=True)
        ]
    return found


def _parse(text: str, name: str) -> tuple[Any, dict[str, int]]:
    if _brackets_deep(text) > MAX_DEPTH:
        raise SpecError(f"{name} is nested more than {MAX_DEPTH} deep, which no config is")
    reader = _Reader(name, text.splitlines())
    try:
        loader = YAML(typ="rt", pure=True)
        return reader.plain(loader.load(text), ""), reader.lines
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{name}:{mark.line + 1}" if mark is not None and "\n" in text else name
        problem = error.problem or error.context or ""
        hint = next((hint for words, hint in _HINTS.items() if words in problem), "")
        raise SpecError(f"{where} is not valid YAML: {problem}{hint}") from error
    except (YAMLError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError(f"{name} is not valid YAML: {str(error) or type(error).__name__}") from error


def _brackets_deep(text: str) -> int:
    """The most brackets that are open at once; those in quotes count too."""
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth = max(0, depth + (1 if bracket in "[{" else -1))
        deepest = max(deepest, depth)
    return deepest


class _Reader:
    """Turns what ruamel.yaml read into plain values, and keeps the line of every field."""

    def __init__(self, name: str, source: list[str]) -> None:
        self.name, self.source = name, source
        self.lines: dict[str, int] = {}
        self.left = MAX_NODES

    def plain(self, node: Any, path: str, line: int = 0) -> Any:
        """The value of `node`, which stands in `line` as far as that is known. Raises SpecError."""
        self.left -= 1
        if self.left < 0:
            raise SpecError(f"{self.name} expands to more than {MAX_NODES} values")
        if isinstance(node, TaggedScalar) or getattr(getattr(node, "tag", None), "value", None):
            raise SpecError(f"{self.where(line)}: YAML tags such as {node.tag.value} are not accepted")
        if isinstance(node, CommentedMap):
            result = {}
            for key, value in node.items():
                there = node.lc.data.get(key) if node.lc.data else None  # none of what a merge (<<) brought in
                at = there[0] + 1 if there else line
                if not isinstance(key, str):
                    hint = self.comma(at, key)
                    raise SpecError(f"{self.where(at)}: {key!r} is not a field name; a field name is text{hint}")
                child = f"{path}.{key}" if path else key
                self.lines[child] = at
                result[key] = self.plain(value, child, at)
            return result
        if isinstance(node, CommentedSeq):
            return [self.plain(value, f"{path}.{i}", line) for i, value in enumerate(node)]
        for plain in (bool, int, float, str):
            if isinstance(node, plain):
                return plain(node)
        if node is None:
            return None
        return str(node)  # dates and the like, which no field accepts: validation names them

    def where(self, line: int) -> str:
        return f"{self.name}:{line}" if line and len(self.source) > 1 else self.name

    def comma(self, line: int, key: Any) -> str:
        """A hint where a number with a comma became a value and a field: {learning_rate: 0,001}."""
        if not isinstance(key, int | float) or not 0 < line <= len(self.source):
            return ""
        found = re.search(r"(?<![\w.])(?<!\d,)\d+,\d+([eE][+-]?\d+)?(?![\w.]|,\d)", self.source[line - 1])
        return (
            f"; a comma ends a value: write {with_point(found[0])} for {found[0]}, or no comma between thousands"
            if found
            else ""
        )


def with_point(number: str) -> str:
    """A number with a comma as YAML writes it."""
    return number.replace(",", ".")
