"""The run store: one folder a run, written by one process, read by many, and as a pandas table."""

from dsabench.store.index import load_runs
from dsabench.store.layout import check_writable
from dsabench.store.reader import (
    find_checkpoint,
    find_run,
    read_metrics,
    read_run,
)
from dsabench.store.records import SCHEMA_VERSION, RunBusyError, RunDoneError, RunRecord, SweepRecord
from dsabench.store.sweeps import list_sweeps, newest_sweep, read_sweep, write_sweep
from dsabench.store.table import load_metrics
from dsabench.store.writer import RunWriter

__all__ = [
    "SCHEMA_VERSION",
    "RunBusyError",
    "RunDoneError",
    "RunRecord",
    "RunWriter",
    "SweepRecord",
    "check_writable",
    "find_checkpoint",
    "find_run",
    "list_sweeps",
    "load_metrics",
    "load_runs",
    "newest_sweep",
    "read_metrics",
    "read_run",
    "read_sweep",
    "write_sweep",
]
