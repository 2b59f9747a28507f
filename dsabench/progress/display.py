"""The progress of runs on stderr: live in a terminal, plain lines elsewhere, nothing with --quiet."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from dsabench.cli.console import stderr_console

if TYPE_CHECKING:
    from dsabench.engine.sink import Update


class Display:
    """Shows a sweep of `total` runs, of which `done` need no work, and the runs in progress."""

    def __init__(self, total: int, done: int, quiet: bool) -> None:
        self.console, self.total, self.done, self.quiet = stderr_console(), total, done, quiet
        self.live = self.console.is_terminal and not quiet
        self.ended: set[str] = set()
        self.started, self.line_at = time.monotonic(), 0.0
        self.numbers: dict[str, int] = {}
        self.shown: set[str] = set()
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.live,
        )
        self.sweep: TaskID | None = None
        self.runs: dict[str, tuple[TaskID, str]] = {}
        """The bar and the label of each run under way."""
        if total > 1:
            self.sweep = self.progress.add_task("sweep", total=total, detail="")

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def note(self, message: str) -> None:
        """One line that stays."""
        if not self.quiet:
            self.progress.console.print(message)

    def note_once(self, message: str) -> None:
        """`note`, unless the same line was shown before: every run of a sweep says the same of its data."""
        if message not in self.shown:
            self.shown.add(message)
            self.note(message)

    def start(self, name: str, steps: int) -> Callable[[Update], None]:
        """Show a run from now on; returns the observer of its updates. Several runs may be shown at a time. A run that
        is shown already starts anew."""
        self.line_at = time.monotonic()
        if name in self.runs:
            self.progress.remove_task(self.runs[name][0])
        task = self.progress.add_task(name, total=steps, detail="starting")
        number = self.numbers.setdefault(name, len(self.numbers) + 1)
        label = f"[{number}/{self.total}] {name}" if self.total > 1 else name
        self.runs[name] = (task, label)

        def observe(update: Update) -> None:
            detail = f"loss {update.loss:.3f}"
            if update.val_loss is not None:
                detail += f"  val {update.val_loss:.3f}"
            detail += f"  {update.tokens_per_second:,.0f} tok/s"
            self.progress.update(task, completed=update.step, detail=detail)
            # without a terminal a line every 30 s: a log shows that the run lives, and stays short
            if not self.live and time.monotonic() - self.line_at > 30:
                self.line_at = time.monotonic()
                self.note(f"{label}  step {update.step}/{update.steps}  {detail}{self._left()}")

        return observe

    def finish(self, name: str, outcome: str) -> None:
        """Print the run's outcome as a line that stays, and move the sweep's bar."""
        task, label = self.runs.pop(name, (None, name))
        if task is not None:
            self.progress.remove_task(task)
        self.ended.add(name)
        self.note(f"{label}  {outcome}{self._left()}")
        if self.sweep is not None:
            self.progress.update(self.sweep, completed=len(self.ended))

    def _left(self) -> str:
        """The time left at the mean pace of the runs that ended; empty before the first has ended."""
        worked, left = len(self.ended) - self.done, self.total - len(self.ended)
        if self.total == 1 or worked < 1 or left < 1:
            return ""
        return f"  (about {duration((time.monotonic() - self.started) / worked * left)} left)"


def duration(seconds: float) -> str:
    """'45 s', '12 min', '3.4 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
