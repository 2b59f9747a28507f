"""One run for a reader, on one screen or all that the store knows of it, and as a JSON document."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from dsabench.cli.console import lines_of_words
from dsabench.cli.safe_text import first_line, printable
from dsabench.cli.views.run_outcome import measure_lines, origin_text
from dsabench.cli.views.text_table import say
from dsabench.errors import StoreError
from dsabench.metrics import recorded_epochs
from dsabench.spec.identity import flatten
from dsabench.spec.rerun_command import command_words, non_default
from dsabench.store import DamagedError, RunRecord, find_name, read_metrics, read_run, run_files
from dsabench.store.table import row_of

_SEALS = {
    "sealed": "record and metrics are what was written",
    "unsealed": "none: stored before 0.3 (dsabench runs seal)",
    "damaged": "damaged: never judged (dsabench runs verify says what to do)",
}

_ERROR_LINES = 8
"""Lines of a failed run's error that are shown without --all."""


class Found(NamedTuple):
    """A run, and whether it is what was written."""

    record: RunRecord
    seal: str
    """sealed, unsealed or damaged."""
    damage: str
    """What is wrong with it, by its record and its metrics."""


def found(store: Path, run: str) -> Found:
    """The run whose id is or starts with `run`; StoreError when nothing of it can be read."""
    name = find_name(store, run)
    try:
        record = read_run(store, name)
    except DamagedError as error:
        if error.record is None:
            raise
        record = error.record
    row, _ = row_of(store / name)
    return Found(record, str(row.get("seal")), str(row["error"]) if row["status"] == "damaged" else "")


def document(run: Found, store: Path) -> dict[str, Any]:
    """The record as it is stored, and beside it what `print_run` shows: damage, files, epochs, last records, and
    the command."""
    record = run.record
    return {
        **json.loads(record.to_json()),  # pydantic's own JSON cannot say half a surrogate pair
        "seal": None if record.seal is None else record.seal.model_dump(),
        "seal_state": run.seal,
        "damage": run.damage or None,
        "non_default": non_default(record.spec),
        "folder": str(store / record.run_id),
        "files": run_files(store, record.run_id),
        "epochs": recorded_epochs(record.summary, record.environment),
        "last_metrics": _last_metrics(record, store)[0],
        "command": _command(record, store),
    }


def print_run(run: Found, store: Path, console: Console, everything: bool = False) -> None:
    """Print what a reader needs of the run, or `everything`, section by section; nothing of it is cut."""
    record = run.record
    leak = " LEAK: this attention sees later tokens; its loss means nothing" if record.summary.get("leak") else ""
    status = f"damaged (recorded as {record.status})" if run.damage else record.status
    say(console, printable(f"{record.run_id}: {status}{leak}"), style="bold")
    if run.damage:
        say(console, printable(f"  {run.damage}"), style="red")
    if everything:
        _all(run, store, console)
    else:
        _short(run, store, console)
    done = " (done already: remove it first, or name another --store)" * (record.status == "done")
    say(console, f"train it again{done}", style="bold")
    say(console, "  " + " \\\n    ".join(_lines(_words(record, store))))
    if not everything:
        words = ["dsabench", "runs", "show", record.run_id, "--all"]
        words += [] if store == Path("runs") else ["--store", str(store)]
        say(console, printable(f"All of it: {shlex.join(words)}"))


def _short(run: Found, store: Path, console: Console) -> None:
    record = run.record
    if record.error:
        lines = [line for line in record.error.splitlines() if line.strip()]
        more = len(lines) - _ERROR_LINES
        say(console, *(f"  {printable(line)}" for line in lines[:_ERROR_LINES]))
        say(console, *([f"  and {more} more lines"] if more > 0 else []))
    say(console, *map(printable, measure_lines(record)))
    machine = record.environment
    on = [str(machine[name]) for name in ("device", "device_name", "precision") if machine.get(name)]
    on += [f"torch {machine['torch']}"] if machine.get("torch") else []
    sizes = run_files(store, record.run_id).values()
    about = {
        "trained": f"{record.created:%Y-%m-%d %H:%M} to {record.updated:%Y-%m-%d %H:%M} UTC, {', '.join(on) or '-'}",
        "by": f"dsabench {record.version}, {f'sweep {record.sweep}' if record.sweep else 'of no sweep'}",
        **({"from": origin} if (origin := origin_text(record)) else {}),
        **({"converted": cost} if (cost := _conversion(record, store)) else {}),
        "in": f"{store / record.run_id} ({len(sizes)} files, {sum(sizes) / 1e6:,.1f} MB)",
        "seal": _SEALS[run.seal],
    }
    _section(console, "", {name: first_line(value) for name, value in about.items()})


def _all(run: Found, store: Path, console: Console) -> None:
    record = run.record
    different = non_default(record.spec)
    same = {path: value for path, value in flatten(record.spec).items() if path not in different}
    about = {
        "sweep": record.sweep or "none",
        **({"from": origin} if (origin := origin_text(record)) else {}),
        "begun": f"{record.created:%Y-%m-%d %H:%M:%S} UTC",
        "updated": f"{record.updated:%Y-%m-%d %H:%M:%S} UTC",
        "dsabench": record.version,
        "folder": store / record.run_id,
        "seal": _SEALS[run.seal],
    }
    _section(console, "", about)
    if record.error:
        say(console, "error", *(f"  {printable(line)}" for line in record.error.splitlines()))
    _section(console, "summary", record.summary, measured=True)
    _section(console, "spec, fields that differ from their defaults", different)
    _section(console, "spec, fields at their defaults", same)
    _section(console, "environment", flatten(record.environment))
    _section(console, "fingerprint", record.fingerprint)
    metrics, problem = _last_metrics(record, store)
    for kind, last in metrics.items():
        _section(console, f"last {kind} record", {k: v for k, v in last.items() if k != "kind"}, measured=True)
    if problem:
        say(console, "metrics", f"  {printable(problem)}")
    sizes = run_files(store, record.run_id)
    _section(console, "files, bytes", {name: f"{size:>12,}" for name, size in sizes.items()})


def _section(console: Console, title: str, values: Mapping[str, Any], measured: bool = False) -> None:
    if not values:
        return
    if title:
        say(console, printable(title), style="bold")
    names = {name: printable(name) for name in values}
    width = min(34, max(map(len, names.values())))
    for name, value in values.items():
        line = f"  {names[name]:{width}}  {_text(value, measured)}"
        lines = lines_of_words(line, console.width, depth=width + 4) if console.is_terminal else [Text(line)]
        for one in lines:
            console.print(one, soft_wrap=True)


def _text(value: Any, measured: bool) -> str:
    if measured and isinstance(value, float):
        return f"{value:,.6g}" if abs(value) < 1e9 else f"{value:.4e}"
    if measured and isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if measured and isinstance(value, list):
        return f"{len(value)} values (dsabench.load_lists has them)"
    if value is None or isinstance(value, bool | list | dict):
        return printable(json.dumps(value))
    return printable(value)


def _conversion(record: RunRecord, store: Path) -> str:
    """What the selection alone cost before the first sparse step, and how much attention it held; "" where no record
    of the run says it."""
    if not origin_text(record):
        return ""
    with suppress(StoreError):
        for found in read_metrics(store, record.run_id):
            if isinstance(cost := found.get("conversion_loss"), float):
                recall, chance = found.get("mass_recall"), found.get("mass_recall_chance")
                held = "" if recall is None or chance is None else f", mass recall {recall:.3f} (chance {chance:.3f})"
                return f"at step {found['step']:,}: {cost:+.4f} nats by the selection alone{held}"
    return ""


def _last_metrics(record: RunRecord, store: Path) -> tuple[dict[str, dict[str, Any]], str]:
    """The last record of each kind, and what is wrong when there is none to be had."""
    try:
        return {one["kind"]: one for one in read_metrics(store, record.run_id)}, ""
    except StoreError as error:
        return {}, str(error)


def _words(record: RunRecord, store: Path) -> list[str]:
    words = command_words(record.spec)
    return words if store == Path("runs") else [*words, "--store", str(store)]


def _command(record: RunRecord, store: Path) -> str:
    return shlex.join(_words(record, store))


def _lines(words: list[str]) -> Iterator[str]:
    """The command in lines of about 76 characters, an option and its value together."""
    line = ""
    for i, word in enumerate(words):
        quoted = printable(shlex.quote(word))
        value = i > 0 and words[i - 1].startswith("--")
        if line and not value and len(line) + len(quoted) + len(shlex.quote(words[min(i + 1, len(words) - 1)])) > 72:
            yield line
            line = ""
        line = f"{line} {quoted}" if line else quoted
    yield line
