"""Reading of single runs. Writes nothing; a run whose process is gone is shown as `interrupted`."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dsabench.errors import StoreError
from dsabench.store import atomic_folder, seals
from dsabench.store.files import explain, explained, is_held
from dsabench.store.layout import LOCK, METRICS, RECORD, SWEEPS, existing_store, run_folder
from dsabench.store.record_values import is_step, is_whole, shown
from dsabench.store.records import DamagedError, RunRecord, check_id, check_seal, read_document, read_record
from dsabench.store.seals import FileSeal, Seal, digest_of


def read_run(store: str | Path, run_id: str) -> RunRecord:
    """The record of run `run_id`; `interrupted` where the file says `running` and nobody holds its lock.

    It is compared with its seal. The run's other files are not looked at: `verification.damage` does.

    Raises:
        DamagedError: the record is not what was written.
        StoreError: there is no such run, its record cannot be read, or a newer dsabench wrote it.
    """
    return read_folder(run_folder(Path(store), run_id))[0]


def read_folder(folder: Path) -> tuple[RunRecord, bool]:
    """The record of the run in `folder`, as `read_run` gives it, and whether it can change while run.json does not."""
    while True:
        record = read_raw(folder)
        if record is None:
            raise StoreError(
                f"{folder}: no {RECORD}: there is no such run, or it was cut off before it began "
                "(running it again completes it)"
            )
        if record.status != "running":
            return record, False
        if is_held(folder / LOCK) is not False:
            return record, True
        # Its process may have finished it after the file was read and before the lock was looked at.
        again = read_raw(folder)
        if again is not None and (again.status, again.updated) == ("running", record.updated):
            return record.model_copy(update={"status": "interrupted"}), True


def read_raw(folder: Path) -> RunRecord | None:
    """The record in `folder` as it is written, or None without one; StoreError if it is damaged or another run's."""
    check_id(folder.name)
    try:
        record = read_record(folder / RECORD, RunRecord)
    except FileNotFoundError:
        return None
    except DamagedError as error:
        raise DamagedError(f"run {folder.name}: {error}", error.record) from error
    if record.run_id != folder.name:
        raise StoreError(
            f"{folder / RECORD}: the record of run {record.run_id!r} in a folder of another name; "
            "rename the folder back"
        )
    return record


def run_names(store: Path) -> list[str]:
    """Names of the folders of `store` that hold a run or the beginning of one, sorted."""
    with explained(store), os.scandir(store) as entries:
        names = [e.name for e in entries if e.name != SWEEPS and not e.name.startswith(".") and e.is_dir()]
    # Text, not Paths, which take four times as long as the calls themselves.
    root = str(store)
    return sorted(n for n in names if any(os.path.lexists(f"{root}/{n}/{file}") for file in (RECORD, LOCK)))


def find_run(store: str | Path, prefix: str) -> RunRecord:
    """The run whose id is `prefix`, or else the only one whose id starts with it.

    Raises:
        StoreError: none or several do (some are named), or the run cannot be read.
    """
    return read_run(store, find_name(store, prefix))


def find_name(store: str | Path, prefix: str) -> str:
    """The id of the run that `find_run` finds, which need not be readable.

    Raises:
        StoreError: none or several start with `prefix`; some are named. Nothing starts with "".
    """
    path = existing_store(store)
    names = run_names(path)
    found = [prefix] if prefix in names else [name for name in names if prefix and name.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    listed = found or names
    shown = ", ".join(listed[:10]) + (f" and {len(listed) - 10} more" if len(listed) > 10 else "")
    if found:
        raise StoreError(f"run {prefix!r} in {path}: {len(found)} runs start with that: {shown}; give more of the id")
    raise StoreError(f"run {prefix!r} in {path}: no run starts with that; there are: {shown or 'none at all'}")


def find_checkpoint(store: str | Path, run_id: str) -> Path | None:
    """The folder of a run's last whole checkpoint, or None; StoreError for an id that cannot be one."""
    return atomic_folder.whole(run_folder(existing_store(store), run_id))


def run_files(store: str | Path, run_id: str) -> dict[str, int]:
    """{path in the run's folder: bytes} of its files, sorted; links are not followed."""
    folder = run_folder(existing_store(store), run_id)
    found = {}
    for here, _, names in os.walk(folder):
        for path in (Path(here, name) for name in names):
            with suppress(OSError):  # it is being replaced
                found[path.relative_to(folder).as_posix()] = path.lstat().st_size
    return dict(sorted(found.items()))


def parse_metrics(path: Path, lists: bool = True, seal: FileSeal | None = None) -> tuple[list[dict[str, Any]], int]:
    """The records of a metrics file, and their size in bytes; a torn line may follow them. ([], 0) without a file.

    lists = False allows all records but the last to come without their lists, which are most of a file. seal: what the
    file must be.

    Raises:
        DamagedError: it is not what was sealed.
        StoreError: a line is no metrics record; names the file and the line.
    """
    try:
        data = path.read_bytes() if path.is_file() or not path.exists() else None
    except FileNotFoundError:
        if seal is not None:
            raise DamagedError(f"{path}: it was removed since the run ended") from None
        return [], 0
    except OSError as error:
        raise explain(path, error) from error
    if data is None:
        raise StoreError(f"{path}: not a file; a JSON-lines file is expected")
    *lines, tail = data.split(b"\n")
    records = None if lists else _at_once(lines)
    if records is None:
        records = [_record(path, number, line) for number, line in enumerate(lines, 1)]
    # A kill cuts our ASCII line short, and a power failure may leave zeros; anything else is damage.
    torn = tail.rstrip(b"\0")
    if torn and not (torn.startswith(b"{") and torn.isascii()):
        raise StoreError(f"{path}: damaged, ends in what is no metrics record: {torn[:60]!r}; remove that")
    if seal is not None and seal != FileSeal(size=len(data), digest=digest_of(data)):
        raise DamagedError(f"{path}: damaged, not what was written (its digest differs)")
    return records, len(data) - len(tail)


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    what = f"not a metrics record: {line[:60]!r}"
    try:
        record = json.loads(line)
        if _is_record(record):
            return record  # type: ignore[no-any-return]
        if isinstance(record, dict) and is_whole(record.get("step")):
            what = f"step = {shown(record['step'])} is not a number of steps"
    except (ValueError, RecursionError):
        pass
    raise StoreError(
        f"{path}, line {number}: damaged, {what}; "
        "remove the line to go without it, or remove the run's folder and run it again"
    )


def _at_once(lines: list[bytes]) -> list[dict[str, Any]] | None:
    """The records of all lines, read as one JSON list, which is several times as fast; lists only in the last.

    None where a line is no record, or perhaps none by itself: the lines must then be read one by one.
    """
    text = b",".join([*map(_without_lists, lines[:-1]), *lines[-1:]])
    try:
        records = json.loads(b"[" + text + b"]")
    except (ValueError, RecursionError):
        return None
    return records if len(records) == len(lines) and all(map(_is_record, records)) else None


def _without_lists(line: bytes) -> bytes:
    """A record's line without its entries `, "name": [...]`, as the writer writes them; no JSON if lists hold lists."""
    start = line.find(b'": [')
    while start >= 0:
        end, name = line.find(b"]", start), line.rfind(b', "', 0, start)
        if end < 0 or name < 0 or line[start - 1 : start] == b"\\":  # a quote inside a text
            break
        line = line[:name] + line[end + 1 :]
        start = line.find(b'": [', name)
    return line


def _is_record(record: Any) -> bool:
    return isinstance(record, dict) and isinstance(record.get("kind"), str) and is_step(record.get("step"))


def read_metrics(store: str | Path, run_id: str) -> list[dict[str, Any]]:
    """The metrics records of a run in the order they were written, NaN and infinities included.

    A torn last line (its writer was killed) is left out.

    Raises:
        DamagedError: the file is not what was there when the run ended.
        StoreError: there is no such run, or a line is damaged.
    """
    folder = run_folder(existing_store(store), run_id)
    if not folder.is_dir():
        raise StoreError(f"{folder}: there is no such run")
    return sealed_metrics(folder)


def sealed_metrics(folder: Path, lists: bool = True) -> list[dict[str, Any]]:
    """The records of the metrics file in a run's folder, compared with its seal; lists as in `parse_metrics`.

    Raises:
        DamagedError, StoreError: as `read_metrics`; or the run's record, which holds the seal, cannot be read.
    """
    path = folder / METRICS
    while True:
        seal = _seal(folder)
        try:
            files = seal.files if seal is not None else None
            told = None if files is None else files.get(METRICS)
            if files is not None and told is None and path.exists():
                raise DamagedError(f"{path}: it was not there when the run ended")
            if seal is not None and files is None:
                _check_past(folder)
            return parse_metrics(path, lists, told)[0]
        except DamagedError:
            # A run that is taken up again loses its seal before its metrics change.
            if _seal(folder) == seal and not is_held(folder / LOCK):
                raise


def _check_past(folder: Path) -> None:
    """Raise DamagedError when the metrics of a killed run are not what was written before its checkpoint."""
    saved = atomic_folder.whole(folder)
    if saved is None or is_held(folder / LOCK) is not False:
        return
    with explained(folder / METRICS):
        problem = seals.past_problem(saved, folder / METRICS)
    if problem is not None:
        raise DamagedError(f"{folder / METRICS}: damaged, {problem}")


def _seal(folder: Path) -> Seal | None:
    """The seal in the record of `folder`, which is what was written itself; None without one."""
    try:
        document = read_document(folder / RECORD)
    except FileNotFoundError:
        return None
    try:
        check_seal(folder / RECORD, document)
        return Seal.model_validate(document["seal"]) if document.get("seal") is not None else None
    except ValidationError as error:
        raise StoreError(f"{folder / RECORD}: damaged, its seal is none") from error
