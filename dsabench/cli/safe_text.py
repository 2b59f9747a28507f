"""Text from files, made safe to print."""

from __future__ import annotations

import sys

from dsabench.plain import escaped


def printable(text: object) -> str:
    """`text` on one line, with all that could command a terminal, or that stdout cannot encode, spelt out (`\\x1b`)."""
    plain = escaped(str(text))
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return plain if plain.isascii() else plain.encode(encoding, "backslashreplace").decode(encoding)


def spelt_out(text: str) -> str:
    """`printable`, with the ends of lines kept."""
    return text if text.isascii() and text.isprintable() else "\n".join(map(printable, text.split("\n")))


def first_line(text: object, most: int | None = None) -> str:
    """The first line that is not empty, made printable, and cut to `most` characters with dots at its end."""
    line = printable(next((line.strip() for line in str(text).splitlines() if line.strip()), ""))
    return line if most is None or len(line) <= most else f"{line[: most - 4].rstrip()} ..."
