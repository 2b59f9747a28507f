"""The window that an inspection looks at: of a validation document, of a text of the user's own, or of a task.

Legend: T inputs of the window, M listed positions of an answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsabench import data as data_package
from dsabench.data import TaskData, TaskWindows
from dsabench.errors import DataError, SpecError
from dsabench.plain import visible
from dsabench.selection.targets import Questions
from dsabench.spec.run import RunSpec
from dsabench.store import RunRecord


@dataclass(frozen=True, eq=False)
class Window:
    """A window's tokens, their text and its source."""

    tokens_T: NDArray[np.int32]

    pieces: list[str]
    """The text of each token."""

    source: str
    """Where they come from, in words."""

    separator: str = ""
    """The text between two pieces: empty where the pieces join to the text itself."""

    questions: Callable[[NDArray[np.int64]], Questions] | None = None
    """For a task: its questions, given the tokens (T,) that the model finds most probable."""


def window_of(
    spec: RunSpec, record: RunRecord, text: str | None, document: int | None, start: int, notes: list[str]
) -> Window:
    """The window that `inspect_selection` describes; adds to `notes` what a reader must know about it.

    Raises SpecError for a choice that the run's data do not have, DataError when there is no such window.
    """
    if spec.data.task is not None:
        return _of_task(spec, record, text, document, start, notes)
    if text is None:
        return _of_document(spec, record, document, start, notes)
    if document is not None:
        raise SpecError(f"a text of your own and validation document {document} replace each other; keep one")
    return _own_text(spec, record, text, start, notes)


def _of_task(
    spec: RunSpec, record: RunRecord, text: str | None, document: int | None, start: int, notes: list[str]
) -> Window:
    name = spec.data.source
    if text is not None or start:
        given = "a text of your own" if text is not None else f"a start at token {start}"
        raise SpecError(
            f"run {record.run_id} was trained on {name}, whose windows are made and not read: {given} has no place in "
            "them; --document N chooses a window"
        )
    data = data_package.prepare(spec.data)
    assert isinstance(data, TaskData)
    if data.fingerprint["tokenizer"] != record.fingerprint.get("tokenizer"):
        raise DataError(f"the tokens of {name} are others than when run {record.run_id} was trained on it")
    if data.fingerprint["corpus"] != record.fingerprint.get("corpus"):
        notes.append(f"the windows of {name} are made in another way than when the run was trained on it")
    windows = TaskWindows(data.settings, spec.length)
    batch = windows.evaluation("val", spec.train.eval_tokens)  # as many as in training, else they are others
    n, chosen = len(batch.tokens), document or 0
    if not 0 <= chosen < n:
        raise DataError(f"validation window {chosen}: there are {n} of them, 0 to {n - 1}")
    inputs_T, following_T = batch.inputs[chosen], batch.tokens[chosen, 1:]

    def questions(most_probable_T: NDArray[np.int64]) -> Questions:
        queries = [int(query) for query in np.flatnonzero(batch.scored[chosen])]
        right, model = (
            dict(zip(queries, windows.pieces(ids[queries]), strict=True)) for ids in (following_T, most_probable_T)
        )
        return Questions(batch.targets[chosen], right, model)

    pieces = windows.pieces(inputs_T)
    return Window(inputs_T, pieces, f"validation window {chosen} of {name}", " ", questions)


def _of_document(spec: RunSpec, record: RunRecord, document: int | None, start: int, notes: list[str]) -> Window:
    try:
        corpus = data_package.prepare(spec.data)
    except DataError as error:
        raise DataError(f"{error}; for a text of your own, --text needs only the run's tokenizer") from None
    assert not isinstance(corpus, TaskData)
    if corpus.fingerprint["tokenizer"] != record.fingerprint.get("tokenizer"):
        raise DataError(
            f"data.source = {spec.data.source} has changed since run {record.run_id} was trained on it, and gives "
            "another tokenizer now; for a text of your own, --text needs only the run's tokenizer"
        )
    if corpus.fingerprint["corpus"] != record.fingerprint.get("corpus"):
        notes.append("the corpus has changed since the run: this document may have been one that it trained on")
    tokens_T, document = data_package.validation_window(corpus, spec.length, document, start)
    name = visible(corpus.val.names[document])
    pieces = data_package.pieces(corpus.tokenizer.decode, tokens_T.tolist())
    return Window(tokens_T, pieces, f"validation document {document} ({name}) from token {start}")


def _own_text(spec: RunSpec, record: RunRecord, text: str, start: int, notes: list[str]) -> Window:
    tokenizer = data_package.tokenizer_by_digest(spec.data, record.fingerprint.get("tokenizer", ""), notes.append)
    tokens_T = tokenizer.encode([text])[0].astype(np.int32)
    n = len(tokens_T)
    if not 0 <= start <= max(0, n - 2):
        raise DataError(f"the text has {n} tokens, so its window cannot start at token {start}")
    if n < 2:
        raise DataError(
            f"the text has {n} token{'s' * (n != 1)}; at least 2 are needed, and the model was trained at {spec.length}"
        )
    shown_T = tokens_T[start : start + spec.length]
    if n > spec.length:
        notes.append(
            f"the text has {n} tokens and the model was trained at {spec.length}: shown are tokens {start} to "
            f"{start + len(shown_T) - 1} (--start T chooses where they begin)"
        )
    elif len(shown_T) < spec.length:
        notes.append(f"the window has {len(shown_T)} tokens; the model was trained at {spec.length}")
    pieces = data_package.pieces(tokenizer.decode, shown_T.tolist())
    return Window(shown_T, pieces, "a text of your own" + (f" from token {start}" if start else ""))
