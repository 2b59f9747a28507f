"""A page of the guide, set for a terminal."""

from __future__ import annotations

import os
import posixpath
import re
from typing import TYPE_CHECKING, ClassVar

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown, MarkdownElement
from rich.padding import Padding
from rich.syntax import Syntax
from rich.text import Text
from rich.theme import Theme

from dsabench.cli.console import stdout_console

if TYPE_CHECKING:
    from dsabench.guide.topics import Page

_WIDTH = 100
"""Most cells of a line; longer lines of prose are hard to read."""

_THEME = Theme({"markdown.code": "bold cyan", "markdown.h1": "bold underline", "markdown.h2": "bold underline"})
"""No backgrounds: they are boxes in a terminal of another colour."""

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def show_page(page: Page) -> None:
    """Show a page in the user's pager, styled."""
    os.environ.setdefault("LESS", "FRX")  # less: styles shown, and no waiting where a page fits the screen
    console = stdout_console()
    with console.use_theme(_THEME), console.pager(styles=True):
        console.print(GuideMarkdown(for_terminal(page.text)), width=min(console.width, _WIDTH))


def for_terminal(text: str) -> str:
    """The Markdown of a page with its links as a reader without a mouse needs them: another page as the command that
    shows it, a file by its path, a picture as a line with its caption."""
    blocks = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(block if block.startswith("```") else _LINK.sub(_spelt_out, block) for block in blocks)


def _spelt_out(link: re.Match[str]) -> str:
    picture, words, target = link.groups()
    if "://" in target:
        return words if target.partition("://")[2].strip("/") == words else f"{words} ({target})"
    if target.startswith("#"):
        return words
    path, _, _ = target.partition("#")
    if picture:
        return f"*Picture: {words} ({posixpath.basename(path)})*"
    if "/" not in path and path.endswith(".md"):
        command = f"`dsabench guide {path.removesuffix('.md')}`"
        return command if words.lower() == path.removesuffix(".md") else f"{words} ({command})"
    file = posixpath.normpath(posixpath.join("dsabench/guide", path))
    return f"`{file}`" if words.strip("`/") in file else f"{words} (`{file}`)"


class _LeftHeading(Heading):
    """A heading at the left edge, without rich's box and centring."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = self.text
        text.justify = "left"
        if self.tag == "h2":
            yield Text()
        yield text


class _IndentedCode(CodeBlock):
    """Code four cells to the right, or as many as its longest line leaves; without rich's frame of blanks."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = str(self.text).rstrip()
        room = options.max_width - max(map(len, text.splitlines()), default=0)
        code = Syntax(text, self.lexer_name, theme=self.theme, word_wrap=True)
        yield Padding(code, (0, 0, 0, max(0, min(4, room))))


class GuideMarkdown(Markdown):
    """rich's Markdown in the guide's look."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _LeftHeading,
        "fence": _IndentedCode,
        "code_block": _IndentedCode,
    }

    def __init__(self, text: str) -> None:
        super().__init__(text, code_theme="ansi_dark", hyperlinks=False)
