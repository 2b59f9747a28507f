"""The question before training that takes a CPU long, asked of whoever is at a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

from dsabench.cli.console import stderr_console
from dsabench.progress.durations import HOUR, duration

LONG_SECONDS = HOUR
"""Estimated time from which is asked. On a GPU an hour is what such experiments take, and nobody is asked."""

Answer = Literal["yes", "quick", "no"]


def is_to_be_asked(device: str, seconds: float) -> bool:
    """Whether training on the device is so long that it takes a yes, and somebody is there to say it."""
    there = sys.stdin is not None and sys.stdin.isatty() and stderr_console().is_terminal
    return device == "cpu" and seconds > LONG_SECONDS and there


def with_quick(command: Sequence[str]) -> list[str]:
    """A sweep's command with the quick config in place of its own."""
    words = list(command)
    for i, word in enumerate(words):
        if word == "--config" and i + 1 < len(words):
            return [*words[: i + 1], "quick", *words[i + 2 :]]
        if word.startswith("--config="):
            return [*words[:i], "--config=quick", *words[i + 1 :]]
    at = words.index("sweep") + 1 if "sweep" in words else len(words)
    return [*words[:at], "--config", "quick", *words[at:]]


def ask(seconds: float, *, offers_quick: bool) -> Answer:
    """Ask on stderr until the answer is one of those offered; no answer is no."""
    console = stderr_console()
    console.print(f"This takes about {duration(seconds)} on this CPU. Train it?")
    console.print("  y  yes, train it")
    answers: dict[str, Answer] = {"y": "yes", "yes": "yes", "n": "no", "no": "no", "": "no"}
    if offers_quick:
        console.print("  q  train the quick config instead: smaller models, the same question, the same flags")
        answers |= {"q": "quick", "quick": "quick"}
    console.print("  n  no, train nothing (so does Enter; --yes asks nothing)")
    while True:
        console.print(f"[{'y/q/N' if offers_quick else 'y/N'}] ", end="")
        try:
            said = input()
        except EOFError:
            console.print()
            return "no"
        if (found := answers.get(said.strip().lower())) is not None:
            return found
        console.print(f"{said.strip()!r} is none of these answers: {', '.join(filter(None, answers))}")
