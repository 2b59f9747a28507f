"""MLflow: `<out>/mlflow.db`, an SQLite tracking store (its folder of files is in maintenance mode), without a server.

MLflow keeps deleted runs, and cannot take back a number. So a run that is already there as it is in the store, by a
digest, is left alone; one that changed is deleted (a stage of its life, to MLflow) and written anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dsabench.trackers.tracker import Point, Run, Session, Tracker, TrackerError

os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}  # read when mlflow is imported

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

DATABASE = "mlflow.db"
EXPERIMENT = "dsabench"
_ID, _DIGEST = "dsabench.run_id", "dsabench.digest"
_STATUS = {"done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_METRICS_A_BATCH, _PARAMETERS_A_BATCH = 1000, 100  # its interface promises no more


def open_at(out: Path) -> Tracker:
    """The database below `out`, made where there is none.

    Raises:
        TrackerError: another version of MLflow made it, or it is none.
    """
    if set("?#%") & set(str(out)):
        raise TrackerError(f"--out {out}: MLflow cannot name a database in a folder with ?, # or % in its path")
    return _Mlflow(out)


class _Mlflow:
    def __init__(self, out: Path) -> None:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)  # it tells of each table that it makes
        uri = f"sqlite:///{out.as_posix()}/{DATABASE}"
        try:
            self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            found = self._client.get_experiment_by_name(EXPERIMENT)
            self._experiment = (
                found.experiment_id
                if found is not None
                else self._client.create_experiment(EXPERIMENT, artifact_location=(out / "artifacts").as_uri())
            )
        except Exception as error:  # of MLflow, SQLAlchemy or Alembic
            raise TrackerError(
                f"{out / DATABASE}: MLflow cannot use it ({' '.join(str(error).split())[:300]}); "
                "remove it, or name another folder (--out)"
            ) from error

    def begin(self, run: Run, points: Sequence[Point]) -> Session | None:
        content = [run.name, run.status, run.updated, dict(run.parameters), dict(run.summary), dict(run.tags), points]
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        there = self._client.search_runs([self._experiment], filter_string=f"tags.`{_ID}` = '{run.run_id}'")
        if run.status != "running" and [one.data.tags.get(_DIGEST) for one in there] == [digest]:
            return None
        for one in there:
            self._client.delete_run(one.info.run_id)
        return _Writing(self._client, self._experiment, run, digest)

    def close(self) -> None:
        pass


class _Writing:
    def __init__(self, client: MlflowClient, experiment: str, run: Run, digest: str) -> None:
        self._client, self._digest = client, digest
        tags = {_ID: run.run_id, "mlflow.source.name": "dsabench"}
        self._id = client.create_run(
            experiment, start_time=round(run.started * 1e3), tags=tags, run_name=run.name
        ).info.run_id
        parameters = [Param(name, "null" if value is None else str(value)) for name, value in run.parameters.items()]
        for i in range(0, len(parameters), _PARAMETERS_A_BATCH):
            client.log_batch(self._id, params=parameters[i : i + _PARAMETERS_A_BATCH])
        self._tags(run.tags)

    def log(self, points: Sequence[Point]) -> None:
        metrics = [
            Metric(name, value, round(point.time * 1e3), point.step)
            for point in points
            for name, value in point.values.items()
        ]
        for i in range(0, len(metrics), _METRICS_A_BATCH):
            self._client.log_batch(self._id, metrics=metrics[i : i + _METRICS_A_BATCH])

    def end(self, run: Run) -> None:
        self.log([Point(run.last_step, run.updated, {f"summary/{name}": value for name, value in run.summary.items()})])
        # The digest last: a run that was cut off has none, and is written anew.
        self._client.set_terminated(self._id, _STATUS[run.status], round(run.updated * 1e3))
        self._tags({**run.tags, _DIGEST: self._digest})

    def leave(self) -> None:
        pass

    def _tags(self, tags: Mapping[str, Any]) -> None:
        listed = [RunTag(name, str(value)) for name, value in tags.items()]
        for i in range(0, len(listed), _PARAMETERS_A_BATCH):
            self._client.log_batch(self._id, tags=listed[i : i + _PARAMETERS_A_BATCH])
