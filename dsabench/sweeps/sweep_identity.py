"""The id of a sweep: its name and a digest of what makes it this one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence

from dsabench.spec.sweep import Sweep
from dsabench.sweeps.plan import PlannedRun, of_sweep


def sweep_id(sweep: Sweep, planned: Sequence[PlannedRun]) -> str:
    """<config name>-<8 hex over the run ids>: the same sweep is the same record."""
    return named(sweep.name, json.dumps(sorted(run.run_id for run in of_sweep(planned))))


def named(name: str, content: str) -> str:
    """The id of a sweep: its name, and 8 hex digits of what makes it this one."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:100] or "sweep"
    return f"{plain}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
