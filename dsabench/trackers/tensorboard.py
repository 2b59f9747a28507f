"""TensorBoard: `<out>/<run name>/events.out.tfevents.*`, one folder and one file a run.

The file is replaced as a whole when an export begins, so that it holds each point once. It is written with
TensorBoard's own record writer and protocol buffers, because its EventFileWriter puts the machine's name into the
file's name.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2, summary_v2
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.plugins.text import metadata as text
from tensorboard.summary.writer.record_writer import RecordWriter

from dsabench.store.files import refuse_links
from dsabench.trackers.tracker import Point, Run, Session, Tracker

_EVENTS = "events.out.tfevents."
_STATUS = {"done": api_pb2.STATUS_SUCCESS, "failed": api_pb2.STATUS_FAILURE, "running": api_pb2.STATUS_RUNNING}


def open_at(out: Path) -> Tracker:
    """Event files below `out`."""
    return _TensorBoard(out)


class _TensorBoard:
    def __init__(self, out: Path) -> None:
        self.out = out

    def begin(self, run: Run, points: Sequence[Point]) -> Session:
        for name in {run.run_id, f"LEAK-{run.run_id}", run.name}:  # a mark may have come since
            folder = self.out / name
            refuse_links(folder)
            for path in folder.glob(f"{_EVENTS}*"):
                path.unlink()
            if folder.is_dir() and name != run.name and not any(folder.iterdir()):
                shutil.rmtree(folder)
        return _Events(self.out / run.name, run)

    def close(self) -> None:
        pass


class _Events:
    def __init__(self, folder: Path, run: Run) -> None:
        folder.mkdir(exist_ok=True)
        path = folder / f"{_EVENTS}{int(run.started):010d}.dsabench"
        self._file = path.open("wb", buffering=0)
        self._writer = RecordWriter(self._file)
        self._write(run.started, 0, file_version="brain.Event:2")
        # A time of its own would make each export another file.
        settings = {name: "null" if value is None else value for name, value in run.parameters.items()}
        settings |= {"LEAK": True} if run.leak else {}
        begun = summary_v2.hparams_pb(settings, trial_id=run.run_id, start_time_secs=run.started)
        self._write(run.started, 0, summary=begun)

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            self._scalars(point.time, point.step, point.values)

    def end(self, run: Run) -> None:
        self._scalars(run.updated, run.last_step, {f"summary/{name}": n for name, n in run.summary.items()})
        status = text.create_summary_metadata("status", "")
        words = "\n".join(f"    {name}: {value}" for name, value in run.tags.items())  # indented: nothing is Markdown
        content = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[words.encode()])
        shown = summary_pb2.Summary.Value(tag="status", metadata=status, tensor=content)
        self._write(run.updated, run.last_step, summary=summary_pb2.Summary(value=[shown]))
        ended = plugin_data_pb2.SessionEndInfo(
            status=_STATUS.get(run.status, api_pb2.STATUS_UNKNOWN), end_time_secs=run.updated
        )
        about = hparams.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=ended))
        mark = summary_pb2.Summary.Value(tag=hparams.SESSION_END_INFO_TAG, metadata=about, tensor=hparams.NULL_TENSOR)
        self._write(run.updated, run.last_step, summary=summary_pb2.Summary(value=[mark]))
        self.leave()

    def leave(self) -> None:
        self._file.close()

    def _scalars(self, time: float, step: int, values: Mapping[str, float]) -> None:
        shown = [summary_pb2.Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        if shown:
            self._write(time, step, summary=summary_pb2.Summary(value=shown))

    def _write(self, time: float, step: int, **what: Any) -> None:
        self._writer.write(event_pb2.Event(wall_time=time, step=step, **what).SerializeToString())
