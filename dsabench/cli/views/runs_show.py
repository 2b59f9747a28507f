"""All that a store knows of one run, for a reader and as a JSON document."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dsabench.cli.safe_text import printable
from dsabench.errors import StoreError
from dsabench.spec.identity import flatten
from dsabench.spec.rerun_command import command_words, non_default
from dsabench.store import RunRecord, read_metrics, run_files


def document(record: RunRecord, store: Path) -> dict[str, Any]:
    """The record as it is stored, and beside it what `print_run` shows: files, last records, and the command."""
    return {
        **json.loads(record.to_json()),  # pydantic's own JSON cannot say half a surrogate pair
        "non_default": non_default(record.spec),
        "folder": str(store / record.run_id),
        "files": run_files(store, record.run_id),
        "last_metrics": _last_metrics(record, store)[0],
        "command": _command(record, store),
    }


def print_run(record: RunRecord, store: Path) -> None:
    """Print what is known of the run, section by section; never cut."""
    different = non_default(record.spec)
    same = {path: value for path, value in flatten(record.spec).items() if path not in different}
    leak = " LEAK: this attention sees later tokens; its loss means nothing" if record.summary.get("leak") else ""
    print(printable(f"{record.run_id}: {record.status}{leak}"))
    about = {
        "sweep": record.sweep or "none",
        "begun": f"{record.created:%Y-%m-%d %H:%M:%S} UTC",
        "updated": f"{record.updated:%Y-%m-%d %H:%M:%S} UTC",
        "dsabench": record.version,
        "folder": store / record.run_id,
    }
    _section("", about)
    if record.error:
        print("error")
        for line in record.error.splitlines():
            print(f"  {printable(line)}")
    _section("summary", record.summary, measured=True)
    _section("spec, fields that differ from their defaults", different)
    _section("spec, fields at their defaults", same)
    _section("environment", flatten(record.environment))
    _section("fingerprint", record.fingerprint)
    metrics, problem = _last_metrics(record, store)
    for kind, last in metrics.items():
        _section(f"last {kind} record", {k: v for k, v in last.items() if k != "kind"}, measured=True)
    if problem:
        print(f"metrics\n  {printable(problem)}")
    sizes = run_files(store, record.run_id)
    _section("files, bytes", {name: f"{size:>12,}" for name, size in sizes.items()})
    print("train it again" + (" (done already: remove it first, or name another --store)" * (record.status == "done")))
    print("  " + " \\\n    ".join(_lines(_words(record, store))))


def _section(title: str, values: Mapping[str, Any], measured: bool = False) -> None:
    if not values:
        return
    if title:
        print(printable(title))
    names = {name: printable(name) for name in values}
    width = min(34, max(map(len, names.values())))
    for name, value in values.items():
        print(f"  {names[name]:{width}}  {_text(value, measured)}")


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
