"""The run store: one folder a run, written by one process, read by many, and as a pandas table."""

from dsabench.store.curves import Curves, load_curves
from dsabench.store.index import load_runs
from dsabench.store.layout import check_writable
from dsabench.store.reader import (
    find_checkpoint,
    find_run,
    read_metrics,
    read_run,
)
from dsabench.store.records import SCHEMA_VERSION, RunBusyError, RunDoneError, RunRecord, SweepRecord
from dsabench.store.sweeps import read_sweep, readable_sweeps, write_sweep
from dsabench.store.table import load_metrics
from dsabench.store.writer import RunWriter

__all__ = [
    "SCHEMA_VERSION",
    "Curves",
    "RunBusyError",
    "RunDoneError",
    "RunRecord",
    "RunWriter",
    "SweepRecord",
    "check_writable",
    "find_checkpoint",
    "find_run",
    "load_curves",
    "load_metrics",
    "load_runs",
    "read_metrics",
    "read_run",
    "read_sweep",
    "readable_sweeps",
    "write_sweep",
]
