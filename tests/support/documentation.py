"""The pages of the documentation, and what in them is for a machine: blocks, command lines, links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUIDE = sorted((ROOT / "dsabench" / "guide").glob("*.md"))
EXAMPLE = ROOT / "configs" / "custom_attention" / "README.md"
PAGES = [ROOT / "README.md", *GUIDE, EXAMPLE]
"""Pages whose commands are executed."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text and where it stands."""

    page: Path
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command line as its words."""

    page: Path
    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{name(self.page)}:{self.line} {shlex.join(self.words)}"


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[Block]:
    """Its fenced blocks in one of these languages; all without any."""
    found, opened = [], None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("```"):
            if opened is None:
                opened = (number + 1, line[3:].strip(), [])
            else:
                first, language, lines = opened
                found.append(Block(page, first, language, "\n".join(lines)))
                opened = None
        elif opened is not None:
            opened[2].append(line)
    assert opened is None, f"{name(page)}: a block is not closed"
    return [block for block in found if not languages or block.language in languages]


def commands(block: Block) -> Iterator[Command]:
    """Its command lines: lines that end in a backslash go on, `&&` joins two, and `#` begins a comment. What is written
    to a file (`> my.yaml`) is printed."""
    begun, first = "", block.line
    for number, line in enumerate(block.text.splitlines(), start=block.line):
        first = first if begun else number
        begun += line
        if begun.endswith("\\"):
            begun = begun[:-1]
            continue
        words: list[str] = []
        for word in [*shlex.split(begun, comments=True), "&&"]:
            if word != "&&":
                words.append(word)
            elif words:
                yield Command(block.page, first, tuple(words[: words.index(">")] if ">" in words else words))
                words = []
        begun = ""


def inline_commands(page: Path) -> Iterator[Command]:
    """`dsabench ...` in running text, but for what is only a pattern (`...`)."""
    text = re.sub(
        r"^```.*?^```$", lambda m: re.sub(r"[^\n]", "", m[0]), page.read_text(encoding="utf-8"), flags=re.M | re.S
    )
    for match in re.finditer(r"`(dsabench\s[^`]+)`", text):
        if "..." not in match[1]:
            yield Command(page, text.count("\n", 0, match.start()) + 1, tuple(shlex.split(match[1])))


def links(page: Path) -> Iterator[str]:
    """Targets of its links and pictures that lie in the repository: `file`, `file#heading` or `#heading`."""
    text = re.sub(r"^```.*?^```$|`[^`]*`(?!\])", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for match in re.finditer(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text):
        target = match[1] or match[2]
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(page: Path) -> set[str]:
    """The names that headings have in links: lower case, without punctuation, spaces as hyphens."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
