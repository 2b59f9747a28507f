"""Plain text and plain JSON values: output that cannot act on a terminal, and that every JSON reader takes."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any


def encodable(text: str) -> str:
    """`text` with what UTF-8 cannot hold (half a surrogate pair, of a file name or of damaged JSON) as an escape."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def escaped(text: str) -> str:
    """`text` with every character that is not printable (str.isprintable) as a Python escape.

    Those are control, format (bidirectional ones among them), private and unassigned characters, ends of lines, and
    all spaces but the ASCII one.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def visible(text: str) -> str:
    """`escaped`, but with spaces of every script left as they are: for text that is shown to be read."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else _escape(c) for c in text)


def signs(text: str) -> str:
    """`-0.002+-0.004` with a true minus and a plus-minus sign, for pages and figures; hyphens in words stay."""
    return re.sub(r"(?<![\w.)-])-(?=\.?\d)", "\u2212", text.replace("+-", "\u00b1"))


def count(n: int, noun: str) -> str:
    """`1 run`, `2,000 runs`."""
    return f"{n:,} {noun}{'s' * (n != 1)}"


def is_or_are(n: int) -> str:
    """The verb after `1 of 3 runs` or `2 runs`."""
    return "is" if n == 1 else "are"


def json_values(value: Any) -> Any:
    """`value` of dicts, lists, arrays and scalars as JSON values; NaN, infinities and what is missing are null.

    A value of any other type is its text.
    """
    if isinstance(value, dict):
        return {str(key): json_values(inner) for key, inner in value.items()}
    if hasattr(value, "tolist"):  # of NumPy
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [json_values(inner) for inner in value]
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return None if _is_missing(value) else str(value)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _is_missing(value: Any) -> bool:
    """Whether a scalar of pandas is NaT or NA: the first differs from itself, the second is neither equal nor not."""
    try:
        return bool(value != value)
    except TypeError:
        return True
