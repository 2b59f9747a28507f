"""What a tracker holds, read by its own reader where it has one."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Seen:
    """One run as the tracker shows it."""

    name: str
    metrics: dict[str, list[tuple[int, float, float]]] = field(default_factory=dict)
    """(step, time, value), in the order of steps; a stable sort."""

    parameters: dict[str, str] = field(default_factory=dict)
    status: str = ""
    texts: str = ""
    """Everything else, as text."""


def tensorboard(out: Path) -> list[Seen]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    found = []
    for folder in sorted(path for path in out.iterdir() if path.is_dir()):
        assert len(list(folder.iterdir())) == 1
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
        events.Reload()
        seen = Seen(folder.name)
        for tag in events.Tags()["scalars"]:
            seen.metrics[tag] = [(e.step, e.wall_time, e.value) for e in events.Scalars(tag)]
        about = {
            tag: metadata.parse_session_start_info_plugin_data
            if tag == metadata.SESSION_START_INFO_TAG
            else metadata.parse_session_end_info_plugin_data
            for tag in events.summary_metadata
            if tag.startswith("_hparams_/")
        }
        for tag, parse in about.items():
            info = parse(events.summary_metadata[tag].plugin_data.content)
            if tag == metadata.SESSION_START_INFO_TAG:
                values = {k: v.WhichOneof("kind") and getattr(v, v.WhichOneof("kind")) for k, v in info.hparams.items()}
                seen.parameters = {name: str(value) for name, value in values.items()}
            else:
                seen.status = {1: "done", 2: "failed", 0: "interrupted"}[info.status]
        if "status" in events.Tags()["tensors"]:
            seen.texts = events.Tensors("status")[0].tensor_proto.string_val[0].decode()
        found.append(seen)
    return found


def wandb(out: Path) -> list[Seen]:
    from wandb.proto import wandb_internal_pb2 as proto

    found = []
    for path in sorted((out / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda path: path.name):
        seen, texts = Seen(""), set()
        for data in _leveldb(path.read_bytes()):
            record = proto.Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                seen.name = record.run.display_name
                seen.parameters |= {u.key: str(json.loads(u.value_json)) for u in record.run.config.update}
                texts |= {f"tag {tag}" for tag in record.run.tags}
            elif kind == "history":
                items = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.history.item}
                for name, value in items.items():
                    if name != "step" and not name.startswith("_"):
                        point = (items["step"], items["_timestamp"], float(value))
                        seen.metrics.setdefault(name, []).append(point)
            elif kind == "summary":
                for update in record.summary.update:
                    name, value = update.key or update.nested_key[0], json.loads(update.value_json)
                    if name.startswith("summary/"):
                        seen.metrics[name] = [(-1, -1, float(value))]
                    if not name.startswith("_"):
                        texts.add(f"{name}: {value}")
            elif kind == "exit":
                seen.status = {0: "done", 1: "failed", 255: "interrupted"}[record.exit.exit_code]
        seen.texts = "\n".join(sorted(texts))
        found.append(seen)
    return found


def _leveldb(data: bytes) -> Iterator[bytes]:
    """The records of a file of LevelDB's log format, in blocks of 32 KiB, after W&B's own 7 bytes."""
    assert data[:4] == b":W&B"
    at, whole = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


def mlflow(out: Path) -> list[Seen]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{out}/mlflow.db", registry_uri=f"sqlite:///{out}/mlflow.db")
    found = []
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            seen = Seen(run.info.run_name, parameters=dict(run.data.params))
            for name in run.data.metrics:
                history = client.get_metric_history(run.info.run_id, name)
                seen.metrics[name] = [(m.step, m.timestamp / 1e3, m.value) for m in history]
            seen.status = {"FINISHED": "done", "FAILED": "failed", "KILLED": "interrupted", "RUNNING": "running"}[
                run.info.status
            ]
            seen.texts = "\n".join(f"{k}: {v}" for k, v in run.data.tags.items())
            found.append(seen)
    return sorted(found, key=lambda seen: seen.name)


READERS: dict[str, Any] = {"tensorboard": tensorboard, "wandb": wandb, "mlflow": mlflow}


def read(name: str, out: Path) -> dict[str, Seen]:
    """{name: the run}; each has one entry."""
    runs = READERS[name](out)
    for seen in runs:
        for points in seen.metrics.values():
            points.sort(key=lambda point: point[0])
    assert len({seen.name for seen in runs}) == len(runs), "a run is there twice"
    return {seen.name: seen for seen in runs}
