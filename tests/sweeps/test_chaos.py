"""A sweep that is killed at random moments ends as one that is not; a crash is its run's; two sweeps share the work.

The default is a short version. `DSABENCH_CHAOS=50 pytest tests/test_chaos.py` kills a sweep of 12 runs 50 times and
then has two sweeps share its runs (some minutes on two cores); tests/support/chaos.py says how.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = int(os.environ.get("DSABENCH_CHAOS", "0"))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="its sweeps are forked, and there is no fork here")
@pytest.mark.parametrize("start", ["null", "{parent: {attention.kind: dense, train.steps: 8}}"])
def test_a_sweep_that_is_killed_again_and_again_ends_as_one_that_is_not(start: str) -> None:
    """With a parent, the first run that crashes is the parent, and its children are not begun."""
    short = ["--kills", "3", "--short", "--", "--seeds", "1", "--lengths", "16"]
    words = [*(["--kills", str(KILLS), "--"] if KILLS else short), "--set", f"start={start}"]
    script = Path(__file__).parents[1] / "support" / "chaos.py"
    done = subprocess.run(
        [sys.executable, str(script), *words], capture_output=True, text=True, timeout=300 + 20 * KILLS, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["killed"]["exit code"] == 0
    assert found["killed"]["kills"] >= (KILLS or 1), found
    assert found["killed"]["differences"] == []
    assert found["killed"]["false alarms"] == []
    assert found["crashed"] == {"exit codes": [-signal.SIGSEGV, 1, 0], "said": True, "differences": []}
    if KILLS:
        assert found["together"]["exit codes"] == [0, 0]
        assert found["together"]["times done"] == [1] * (12 if start == "null" else 18)
        assert found["together"]["differences"] == []
