"""A stored run's selection on one window: which run, which text, and everything that is shown of them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dsabench.engine.random_state import kept_random_state
from dsabench.errors import SpecError, StoreError
from dsabench.plain import count
from dsabench.selection.numbers import Numbers, selection_numbers
from dsabench.selection.targets import Questions, question_list, with_targets
from dsabench.selection.window_choice import window_of
from dsabench.spec.rerun_command import TRAIN_SELECTING
from dsabench.spec.run import EngineSpec, RunSpec
from dsabench.spec.stored_spec import needed_plugins, stored_spec
from dsabench.store import RunRecord, find_checkpoint, find_run, load_runs, read_run
from dsabench.store.files import write_file
from dsabench.store.layout import run_folder
from dsabench.store.verification import sound_checkpoint

if TYPE_CHECKING:
    from dsabench.selection.capture import LayerSelection

_HINT = f"train one with: {TRAIN_SELECTING}"


@dataclass(frozen=True, eq=False)
class Inspection:
    """One window as a stored run sees it. `layers` are the numpy arrays of capture.py."""

    record: RunRecord
    spec: RunSpec
    step: int
    """Training steps behind the weights."""

    source: str
    """Where the text comes from, in words."""

    pieces: list[str]
    """The text of each token."""

    layers: list[LayerSelection]
    notes: list[str] = field(default_factory=list)
    """What a reader must know of it, a line each."""

    separator: str = ""
    """The text between two pieces: empty where the pieces join to the text itself."""

    questions: Questions | None = None
    """The queries of a task's window, with targets and answers; None for a text."""

    window_name: str = ""
    """Name of a window that was asked for, for its files; empty for the run's own first one."""

    @property
    def run_id(self) -> str:
        """The run."""
        return self.record.run_id

    @property
    def file_stem(self) -> str:
        """Name of its files without suffix, another for each window: none writes over another's picture."""
        return "_".join(filter(None, ("selection", self.run_id, self.window_name)))

    @property
    def length(self) -> int:
        """Tokens of the window."""
        return len(self.pieces)

    @property
    def title(self) -> str:
        """Run, k and text in one line."""
        ks = sorted({layer.k for layer in self.layers})
        chosen = f"k = {ks[0]}" if len(ks) == 1 else f"k = {ks[0]} to {ks[-1]}"
        return f"{self.run_id}: {chosen} of {self.length} tokens, {self.source}"

    @functools.cached_property
    def numbers(self) -> Numbers:
        """`selection_numbers` of the layers; for a task, `with_targets` of these."""
        numbers = selection_numbers(self.layers)
        return numbers if self.questions is None else with_targets(numbers, self.layers, self.questions)

    @property
    def default_query(self) -> int:
        """The query to show first: the last scored one of a task, the last one of a text."""
        return self.length - 1 if self.questions is None else self.questions.queries[-1]

    @property
    def default_layer(self) -> LayerSelection:
        """The layer to show first: the one that selects most targets of a task, the last one for a text."""
        best = self.numbers.get("target_recall_best_layer", self.layers[-1].layer)
        return next(layer for layer in self.layers if layer.layer == best)

    def document(self) -> Numbers:
        """Everything but the arrays, as one JSON document; for a task with its queries (`question_list`)."""
        asked = {} if self.questions is None else {"queries": question_list(self.pieces, self.layers, self.questions)}
        return {
            "run_id": self.run_id,
            "status": self.record.status,
            "attention": self.spec.attention.kind,
            "trained_length": self.spec.length,
            "step": self.step,
            "stage": "sparse",
            "source": self.source,
            "tokens": self.length,
            "notes": self.notes,
            **self.numbers,
            **asked,
        }


@kept_random_state()
def inspect_selection(
    store: str | Path = "runs",
    run: str | None = None,
    *,
    text: str | None = None,
    document: int | None = None,
    start: int = 0,
    layers: Sequence[int] | None = None,
    device: str = "cpu",
) -> Inspection:
    """What the layers of a stored run select in one window, in fp32 and the sparse stage.

    run: a unique prefix of a run's id; None is `newest_selecting_run`. The window: at most L tokens of `text`, or else
    L tokens of validation document `document` (None: the first long enough), from token `start` on; L is the length
    that the run was trained at. Of a run on a task it is validation window `document` (None: 0), whole. layers: those
    to keep, None for all.
    Raises StoreError, SpecError, DataError or DeviceError when there is nothing to show, saying what would do.
    """
    notes: list[str] = []
    record = newest_selecting_run(store, notes) if run is None else find_run(store, run)
    folder = sound_checkpoint(run_folder(Path(store), record.run_id), record, notes.append)
    if folder is None:
        raise StoreError(f"run {record.run_id} ({record.status}) has no checkpoint in {store}; choose another run")
    spec = stored_spec(record.spec, record.run_id)
    if spec.attention.kind == "dense":
        raise SpecError(f"run {record.run_id} does not select: its attention is dense; {_other(store)}")
    from dsabench import models  # torch from here on
    from dsabench.engine.checkpoint import steps_done
    from dsabench.engine.device import resolve
    from dsabench.selection.capture import inspect, most_probable_T

    execution = resolve(EngineSpec(device=device, precision="fp32"))
    window = window_of(spec, record, text, document, start, notes)
    model = models.stored_model(record, folder).to(execution.device)
    found = inspect(model, window.tokens_T, execution)
    if not found:
        raise SpecError(
            f"run {record.run_id}: attention {spec.attention.kind} captures no selection (it does not fill "
            f"context.capture); {_other(store)}"
        )
    step = steps_done(folder)
    notes += _notes(spec, record, step, found)
    questions = None
    if window.questions is not None:
        questions = window.questions(most_probable_T(model, window.tokens_T, execution))
    kept = _chosen(found, layers)
    return Inspection(
        *(record, spec, step, window.source, window.pieces, kept, notes, window.separator, questions),
        window_name=_window_name(text, document, start),
    )


def _window_name(text: str | None, document: int | None, start: int) -> str:
    """`text-1a2b3c4d`, a digest of the text; `document-3`; `document-3-start-40`; empty for the default window."""
    if text is not None:
        which = f"text-{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:8]}"
    else:
        which = "" if document is None else f"document-{document}"
    return "-".join(filter(None, (which, f"start-{start}" if start else "")))


def newest_selecting_run(store: str | Path, notes: list[str] | None = None) -> RunRecord:
    """The finished run with a checkpoint that was written last, of those whose queries keep fewer than L keys.

    Adds to `notes` which newer ones were passed over. One whose attention is a plugin's is: looking for a run executes
    no file, naming it does. Raises StoreError when there is none.
    """
    runs = load_runs(store)
    done = runs[(runs["status"] == "done") & (runs["attention"] != "dense")]
    n_selecting, of_plugins = 0, list[str]()
    for run_id in done.sort_values(["order", "run_id"], ascending=False)["run_id"]:
        record = read_run(store, run_id)
        if needed_plugins(record.spec):
            of_plugins.append(run_id)
            continue
        try:
            spec = stored_spec(record.spec, run_id)
        except SpecError:  # of another version, or damaged
            continue
        k = spec.attention.n_selected(spec.length)
        if k is None or k >= spec.length:
            continue
        if find_checkpoint(store, run_id) is not None:
            if n_selecting and notes is not None:
                newer = "1 newer run has" if n_selecting == 1 else f"{n_selecting} newer runs have"
                notes.append(f"{newer} no checkpoint any more: shown is the newest that has one")
            if of_plugins and notes is not None:
                notes.append(_passed_over(of_plugins))
            return record
        n_selecting += 1
    if of_plugins:
        raise StoreError(
            f"{store}: no finished run of a built-in attention selects; {_passed_over(of_plugins)}; {_HINT}"
        )
    if n_selecting:
        raise StoreError(
            f"{store}: {count(n_selecting, 'finished run')} would select, but no checkpoint is there; {_HINT}"
        )
    raise StoreError(f"{store}: of {count(len(runs), 'run')} none is finished and selects (k < L); {_HINT}")


def _passed_over(run_ids: Sequence[str]) -> str:
    were = "run of a plugin was" if len(run_ids) == 1 else "runs of plugins were"
    return f"{len(run_ids):,} {were} passed over: a plugin file is executed only for a run that is named"


def selection_frame(layers: Sequence[LayerSelection], questions: Questions | None = None) -> pd.DataFrame:
    """One row for each selected key: layer, query, rank (0: the highest score), key, score, attention_mass.

    Sorted by layer, query and rank; score is missing for a variant without scores. With `questions` also target:
    whether the key is one that the query must attend to for its answer.
    """
    frames = []
    for layer in layers:
        query, rank = np.nonzero(layer.selected_TK >= 0)
        key = layer.selected_TK[query, rank]
        score = None if layer.scores_TS is None else layer.scores_TS[query, key]
        columns = {
            "layer": np.full(len(key), layer.layer, np.int32),
            "query": query.astype(np.int32),
            "rank": rank.astype(np.int32),
            "key": key,
            "score": np.full(len(key), np.nan, np.float32) if score is None else score,
            "attention_mass": layer.mass_TS[query, key],
        }
        if questions is not None:
            columns["target"] = (questions.targets_TM[query] == key[:, None]).any(axis=1)
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def export_selection(layers: Sequence[LayerSelection], path: Path, questions: Questions | None = None) -> Path:
    """Write selection_frame as Parquet; returns `path`. Raises ResultsError."""
    return write_file(path, selection_frame(layers, questions).to_parquet(None, index=False))


def _notes(spec: RunSpec, record: RunRecord, step: int, layers: Sequence[LayerSelection]) -> list[str]:
    from dsabench.attention.plugins import digest_of

    notes = []
    if record.status != "done":
        notes.append(f"the run is {record.status}: shown is its checkpoint at step {step} of {spec.train.steps}")
    warmup = spec.attention.warmup_steps(spec.train.steps)
    if step < warmup:
        notes.append(
            f"the checkpoint is from the dense warm-up stage ({warmup} steps), in which attention is dense; shown is "
            "the sparse stage, in which this model has not trained yet"
        )
    if (digest_of(spec.attention) or "") != record.fingerprint.get("plugin", ""):
        notes.append(f"the plugin file of {spec.attention.kind} has changed since the run")
    everything = [layer.layer for layer in layers if layer.k >= layer.length]
    if everything:
        which = "every layer" if len(everything) == len(layers) else f"layer {', '.join(map(str, everything))}"
        notes.append(
            f"k is not below the {layers[0].length} tokens in {which}: everything is selected, nothing can be missed"
        )
    return notes


def _chosen(found: list[LayerSelection], wanted: Sequence[int] | None) -> list[LayerSelection]:
    there = {layer.layer: layer for layer in found}
    for layer in wanted or ():
        if layer not in there:
            raise SpecError(f"layer {layer}: the layers that select are {', '.join(map(str, there))}")
    return found if wanted is None else [there[layer] for layer in sorted(set(wanted))]


def _other(store: str | Path) -> str:
    """A hint at what would work, for a run that cannot be shown."""
    try:
        return f"one that selects: {newest_selecting_run(store).run_id}"
    except StoreError:
        return _HINT
