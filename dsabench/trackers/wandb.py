"""Weights & Biases, offline: `<out>/wandb/offline-run-<time>-<run id>/`, for `wandb sync` to send when it is wanted.

The user's settings for W&B are ignored here: a variable or a file that says `online` must not send a store anywhere.
Files that an earlier export wrote of a run are deleted first.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dsabench.trackers.tracker import Point, Run, Session, Tracker

for _name in [name for name in os.environ if name.startswith("WANDB_")]:
    del os.environ[_name]
os.environ |= {  # read when wandb is imported
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_CONSOLE": "off",
    "WANDB_DISABLE_GIT": "true",
    "DO_NOT_TRACK": "1",
    "OTEL_SDK_DISABLED": "true",
}

import wandb  # noqa: E402

PROJECT = "dsabench"
_EXIT = {"done": 0, "failed": 1, "interrupted": 255}


def open_at(out: Path) -> Tracker:
    """Offline runs below `out`."""
    return _Wandb(out)


def wandb_id(run_id: str) -> str:
    """The run's id in W&B, which takes at most 128 characters."""
    return run_id if len(run_id) <= 100 else f"{run_id[:90]}-{hashlib.sha256(run_id.encode()).hexdigest()[:9]}"


class _Wandb:
    def __init__(self, out: Path) -> None:
        self.out = out
        self._settings = wandb.Settings(
            mode="offline",
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            save_code=False,
            disable_job_creation=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            host="",
            program="dsabench",
        )

    def begin(self, run: Run, points: Sequence[Point]) -> Session:
        name = re.compile(rf"offline-run-\d{{8}}_\d{{6}}-{re.escape(wandb_id(run.run_id))}")
        for folder in (self.out / "wandb").glob("offline-run-*"):
            if name.fullmatch(folder.name) and not folder.is_symlink():
                shutil.rmtree(folder)
        return _Offline(self.out, run, self._settings)

    def close(self) -> None:
        wandb.teardown()


class _Offline:
    def __init__(self, out: Path, run: Run, settings: wandb.Settings) -> None:
        self._run = wandb.init(
            dir=str(out),
            project=PROJECT,
            id=wandb_id(run.run_id),
            name=run.name,
            group=run.tags.get("sweep"),
            tags=["LEAK"] if run.leak else [],
            config=dict(run.parameters),
            settings=settings,
            reinit="create_new",
        )
        # W&B's own steps only rise; a metric that names the steps takes them in any order.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            self._run.log({**point.values, "step": point.step, "_timestamp": point.time})

    def end(self, run: Run) -> None:
        about: Mapping[str, Any] = {**{f"summary/{name}": value for name, value in run.summary.items()}, **run.tags}
        self._run.summary.update(dict(about))
        self._run.finish(exit_code=_EXIT.get(run.status, 255))

    def leave(self) -> None:
        self._run.finish(exit_code=_EXIT["interrupted"])
