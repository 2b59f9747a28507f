"""dsabench: does DeepSeek Sparse Attention learn as well as dense attention, where is it faster, what does it look at?

What the commands do, a notebook can do:

    spec = dsabench.load_spec("seed", overrides={"length": 64})     # a RunSpec
    model = dsabench.build_model(spec)                              # model(tokens_BT).logits_BTV
    record = dsabench.train(spec, store="runs")                     # a RunRecord
    runs, metrics = dsabench.load_runs("runs"), dsabench.load_metrics("runs")
    model = dsabench.load_model("runs", record.run_id)
    times = dsabench.bench_layer(lengths=[4096, 16384])             # times.cells, times.crossovers
    seen = dsabench.inspect_selection("runs", record.run_id)        # seen.layers, seen.numbers
    found = dsabench.diff_runs("runs", "dsa-L64-s1", "dense-L64-s1")  # found.spec, found.environment, found.outcome
    again = dsabench.reproduce("runs", record.run_id)               # again.verdict, again.records, again.weights
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dsabench.analysis.difference import diff_runs as diff_runs
    from dsabench.analysis.inspect_run import inspect_selection as inspect_selection
    from dsabench.analysis.reproduce import reproduce as reproduce
    from dsabench.attention.registry import no_plugins as no_plugins
    from dsabench.bench.api import bench_layer as bench_layer
    from dsabench.errors import DsabenchError as DsabenchError
    from dsabench.runner import build_model as build_model
    from dsabench.runner import load_model as load_model
    from dsabench.runner import load_spec as load_spec
    from dsabench.runner import train as train
    from dsabench.store import load_metrics as load_metrics
    from dsabench.store import load_runs as load_runs

_HOME = {
    "DsabenchError": "errors",
    "bench_layer": "bench.api",
    "build_model": "runner",
    "diff_runs": "analysis.difference",
    "inspect_selection": "analysis.inspect_run",
    "load_metrics": "store",
    "load_model": "runner",
    "load_runs": "store",
    "load_spec": "runner",
    "reproduce": "analysis.reproduce",
    "no_plugins": "attention.registry",
    "train": "runner",
}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    """Import on first use: `import dsabench` loads neither torch nor pandas."""
    if name not in _HOME:
        raise AttributeError(f"module 'dsabench' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dsabench.{_HOME[name]}"), name)
