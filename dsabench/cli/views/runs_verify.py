"""The health of a store for a reader: how many runs are whole, what is damaged, and what to do about it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from dsabench.cli.console import stderr_console, stdout_console
from dsabench.cli.safe_text import printable
from dsabench.cli.views.json_document import print_json
from dsabench.cli.views.text_table import say
from dsabench.errors import StoreError
from dsabench.plain import count
from dsabench.store import RunBusyError, StoreHealth, check_store, index, seal_run
from dsabench.store.health import RunHealth
from dsabench.store.layout import existing_store
from dsabench.store.reader import run_names

_EVERY_S = 10.0
"""Seconds between two lines of progress where no terminal shows it."""

_MEANING = {
    "sealed": "what was written",
    "unsealed": "stored before 0.3; nothing in them contradicts itself",
    "damaged": "named above",
    "running": "not looked at while they train",
}


class _Told(Protocol):
    def __call__(self, i: int, n: int, size: int = 0) -> None: ...


def checked(store: Path, names: Sequence[str] | None) -> StoreHealth:
    """Compare the runs of these ids (None: the whole store) with what was written, and show how far that is."""
    with _progress("verified") as told:
        return check_store(store, names, told)


def print_health(found: StoreHealth, as_json: bool) -> None:
    """Print the counts, each damaged run with what differs and what to do, and what is no damage."""
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    console = stdout_console()
    for run in found.runs:
        if run.state == "damaged":
            say(console, printable(f"{run.run_id}: damaged"), style="bold red")
            say(console, *_lines(run))
    for sweep in found.sweeps:
        say(console, printable(f"sweep: {sweep.problem}"), style="bold red")
        say(console, printable(f"  {sweep.advice}"))
    for note in found.notes:
        say(console, printable(f"note: {note}"))
    n = len(found.runs)
    say(console, f"{count(n, 'run')} of {printable(found.store)}, {found.bytes / 1e6:,.1f} MB:", style="bold")
    for state, number in found.counts.items():
        if number:
            say(console, f"  {number:,} {state} ({_MEANING[state]})")
    if found.counts["unsealed"]:
        where = "" if found.store == "runs" else f" --store {found.store}"
        say(console, printable(f"`dsabench runs seal --all{where}` gives a seal to those without."))


def seal_and_print(store: Path, names: Sequence[str] | None) -> bool:
    """Seal the runs of these ids (None: all), and print what became of them. Whether none of them is damaged."""
    wanted = run_names(existing_store(store)) if names is None else names
    sealed, before, running, refused = 0, 0, 0, []
    with _progress("sealed") as told:
        for i, name in enumerate(wanted):
            told(i, len(wanted))
            try:
                outcome = seal_run(store, name)
            except RunBusyError:
                running += 1
            except StoreError as error:
                refused.append(f"{name}: not sealed: {str(error).removeprefix(f'run {name}: ')}")
            else:
                sealed += outcome == "sealed"
                before += outcome == "was sealed"
    if sealed:
        index.update_now(store)
    for line in refused:
        print(printable(line))
    parts = [f"{count(sealed, 'run')} sealed"]
    parts += [f"{before:,} had a seal and {'is' if before == 1 else 'are'} what was written"] if before else []
    parts += [f"{running:,} left alone while {'it trains' if running == 1 else 'they train'}"] if running else []
    parts += [f"{len(refused):,} refused (`dsabench runs verify` says what to do)"] if refused else []
    print("; ".join(parts))
    return not refused


def _lines(run: RunHealth) -> Iterator[str]:
    for problem in [*run.problems, *run.checkpoint]:
        yield printable(f"  {problem}")
    yield printable(f"  {run.advice}{':' if run.commands else ''}")
    for command in run.commands:
        yield printable(f"    {command}")


@contextmanager
def _progress(word: str) -> Iterator[_Told]:
    """Shows how many runs were looked at: on a terminal in one line, elsewhere a line now and then."""
    console = stderr_console()
    if console.is_terminal:
        with console.status(f"0 runs {word}") as status:

            def shown(i: int, n: int, size: int = 0) -> None:
                status.update(_text(i, n, size, word))

            yield shown
        return
    last = time.monotonic()

    def told(i: int, n: int, size: int = 0) -> None:
        nonlocal last
        if time.monotonic() - last >= _EVERY_S:
            last = time.monotonic()
            print(_text(i, n, size, word), file=sys.stderr, flush=True)

    yield told


def _text(i: int, n: int, size: int, word: str) -> str:
    return f"{i:,} of {count(n, 'run')} {word}" + (f", {size / 1e6:,.0f} MB" if size else "")
