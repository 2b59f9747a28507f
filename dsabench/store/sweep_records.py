"""Sweeps of a store: one JSON file each in `sweeps/`."""

from __future__ import annotations

from pathlib import Path

from dsabench._version import __version__
from dsabench.errors import StoreError
from dsabench.store.files import explained, refuse_links, write_atomic
from dsabench.store.layout import SWEEPS, existing_store, locked, make_store
from dsabench.store.order import next_order
from dsabench.store.record_files import read_record
from dsabench.store.records import SweepRecord, check_id


def write_sweep(store: str | Path, record: SweepRecord) -> None:
    """Store `record`, the newest from now on, in place of one of the same id; StoreError when it cannot be written."""
    path = Path(store) / SWEEPS / f"{check_id(record.id, 'sweep')}.json"
    make_store(Path(store))
    refuse_links(path.parent)
    with explained(path):
        path.parent.mkdir(exist_ok=True)
    with locked(Path(store)):
        write_atomic(
            path, record.model_copy(update={"order": next_order(Path(store)), "version": __version__}).to_json()
        )


def read_sweep(store: str | Path, sweep_id: str) -> SweepRecord:
    """The sweep `sweep_id`; StoreError when there is none (those there are are named) or it is damaged."""
    path = existing_store(store) / SWEEPS / f"{check_id(sweep_id, 'sweep')}.json"
    try:
        record = read_record(path, SweepRecord)
    except FileNotFoundError:
        there = ", ".join(sorted(p.stem for p in path.parent.glob("[!.]*.json"))) or "none at all"
        raise StoreError(f"sweep {sweep_id!r} in {store}: no such sweep; there are: {there}") from None
    if record.id != sweep_id:
        raise StoreError(f"{path}: the record of sweep {record.id!r} in a file of another name; rename it back")
    return record


def readable_sweeps(store: str | Path) -> tuple[list[SweepRecord], list[str]]:
    """Every sweep that can be read, the last written first, and what is wrong with each of the others."""
    folder = existing_store(store) / SWEEPS
    records, problems = [], []
    for path in sorted(folder.glob("[!.]*.json")):
        try:
            records.append(read_sweep(store, path.stem))
        except StoreError as error:
            problems.append(str(error))
    return sorted(records, key=lambda r: (r.place, r.updated, r.created, r.id), reverse=True), problems
