"""`dsabench guide`: the documentation, in the terminal."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from dsabench.cli import completion
from dsabench.cli.command_help import LOOK_UP, HelpfulCommand, epilog
from dsabench.errors import DsabenchError

TopicArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="TOPIC", help="A page; else the list of all.", show_default=False, autocompletion=completion.topics
    ),
]

_EXAMPLES = (
    ("The list of pages", "dsabench guide"),
    ("How an answer comes about", "dsabench guide verdicts"),
    ("A page as Markdown, in a pipe or a file", "dsabench guide attention > attention.md"),
)


class GuideError(DsabenchError):
    """There is no page of that name."""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "guide",
        cls=HelpfulCommand,
        short_help="Show the documentation, page by page.",
        epilog=epilog("start", *_EXAMPLES),
        rich_help_panel=LOOK_UP,
    )(guide)


def guide(topic: TopicArgument = None) -> None:
    """Show a page of the documentation, or the list of topics.

    In a terminal a page is set for reading and shown in your pager (PAGER). In a pipe or a file it is plain Markdown.
    """
    from dsabench.guide.topics import pages

    found = pages()
    if topic is None:
        from dsabench.cli.views.topic_list import topic_lines

        print("\n".join(topic_lines(found.values())))
    elif topic not in found:
        from dsabench.spec.messages import near_miss

        raise GuideError(f"there is no guide page {topic!r}{near_miss(topic, list(found))}")
    elif sys.stdout.isatty():
        from dsabench.cli.views.guide_page import show_page

        show_page(found[topic])
    else:
        print(found[topic].text, end="")
