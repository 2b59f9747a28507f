"""The origin of a run: the trained model that it starts from, found, checked, and what is recorded of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dsabench import data as data_package
from dsabench.attention.plugins import digest_of
from dsabench.engine import checkpoint
from dsabench.engine.starting_weights import Shapes, StartingPoint, mismatch, shapes_of, stored_shapes
from dsabench.errors import DataError, SpecError, StoreError
from dsabench.model.foreign import ForeignModel
from dsabench.model.transformer import outline
from dsabench.spec.foreign_folder import INDEX, WEIGHTS, is_foreign
from dsabench.spec.identity import run_id
from dsabench.spec.parent_spec import parent_spec
from dsabench.spec.run import RunSpec
from dsabench.store import RunRecord, find_checkpoint, find_run, read_run
from dsabench.store.layout import RECORD
from dsabench.store.seals import checkpoint_problems, file_seal
from dsabench.store.verification import sound_checkpoint
from dsabench.sweeps.foreign_origin import check_foreign, foreign_model
from dsabench.user_folders import expanded

_FREE = ("dropout", "balance_loss_weight", "rope_base")
"""Fields of a model in which it may differ from the one that it starts from: what it computes stays near. Other fields
would make another function of the same weights, if they fit at all."""

_THEIRS = "checkpoint/" + WEIGHTS


@dataclass(frozen=True)
class Origin:
    """A trained model that a run starts from."""

    name: str
    """What it is called in messages."""

    folder: Path | None
    """Its checkpoint; None for a run that resumes, and whose origin is gone."""

    about: dict[str, Any]
    """What the child's record says of it: `run` (its id, null where none is known), `weights` (their digest), `steps`
    (behind it, its own parents' included), and `val_loss`, its own."""

    record: RunRecord | None = None
    """Its record, where it has one."""

    key: str | None = None
    """What the run's identity holds of it (`start_digest`)."""

    foreign: ForeignModel | None = None
    """What was read of its folder, where others trained it."""

    @property
    def files(self) -> list[Path]:
        """The files that a machine without its folder needs to start from it."""
        if self.foreign is not None:
            return list(self.foreign.sources)
        return [] if self.folder is None else [self.folder / WEIGHTS]

    @property
    def point(self) -> StartingPoint:
        """What the training loop is told of it."""
        return StartingPoint(int(self.about["steps"]), self.folder)


def fingerprint(spec: RunSpec, corpus: Mapping[str, str], start: str | None) -> dict[str, str]:
    """The digests that are part of a run's identity: the corpus's, a plugin's, and `start_digest`."""
    plugin = digest_of(spec.attention)
    return {**corpus, **({"plugin": plugin} if plugin else {}), **({"start": start} if start else {})}


def start_digest(spec: RunSpec, store: str | Path) -> str | None:
    """What a run's identity holds of its origin: the digest of the weights, or of a parent, which need not be trained
    yet, its id; None where weights are drawn. Raises StoreError when there is no such model."""
    if (parent := parent_spec(spec)) is not None:
        return identity_of(parent, store)[0]
    if spec.start is None:
        return None
    return str(_found(spec, store, _silent, whole=False).about["weights"])


def identity_of(
    spec: RunSpec, store: str | Path, corpus: Mapping[str, str] | None = None
) -> tuple[str, dict[str, str]]:
    """A run's id and the digests in it. corpus: the data's digests, where they are known. Raises DataError, StoreError,
    SpecError."""
    corpus = data_package.fingerprint(spec.data) if corpus is None else corpus
    digests = fingerprint(spec, corpus, start_digest(spec, store))
    return run_id(spec, digests), digests


def origin_of(
    spec: RunSpec, store: str | Path, digests: Mapping[str, str], tell: Callable[[str], None]
) -> Origin | None:
    """The origin of the run of these digests, read and compared with its seal; None where weights are drawn.

    A run that has a checkpoint of its own keeps what its record says of its origin, which may be gone.

    Raises:
        StoreError: it is not there, has not ended well, or is damaged.
        SpecError: it is no model for this spec.
    """
    if spec.start is None:
        return None
    before = _recorded(store, run_id(spec, dict(digests)))
    try:
        found = _found(spec, store, tell, whole=True)
    except StoreError:
        if before is None:
            raise
        return Origin(str(before.get("run")), None, before, key=digests["start"])
    if found.foreign is None:
        _check_spec(found, spec, digests)
    else:
        check_foreign(found.foreign.config, spec, found.name, tell)
    if spec.start.parent is None and found.about["weights"] != digests["start"]:
        raise StoreError(
            f"{found.name} has other weights than those that run {run_id(spec, dict(digests))} starts from: their "
            f"digest is {found.about['weights'][:12]}, and not {digests['start'][:12]}. Nothing was trained"
        )
    return replace(found, about=before or found.about, key=digests["start"])


def check_shapes(spec: RunSpec, vocab_size: int, found: Origin) -> None:
    """Raise SpecError, parameter by parameter, when the origin's weights are not those of the spec's model."""
    if found.folder is not None:
        is_whole = is_foreign(found.folder)
        _check_shapes(found.name, stored_shapes(found.folder), spec, vocab_size, is_whole)


def check_parent(spec: RunSpec, vocab_size: int) -> None:
    """`check_shapes` of a parent that is not trained yet, by its spec."""
    if (parent := parent_spec(spec)) is not None:
        expected = data_package.prepare(parent.data)
        _check_model(parent.model.model_dump(), spec, "start.parent")
        _check_shapes("start.parent", shapes_of(outline(parent, expected.vocab_size)), spec, vocab_size)


def check_origins(specs: Sequence[RunSpec], store: str | Path) -> None:
    """Check what the specs start from, as far as it is there, before any of them is trained. Raises as `origin_of` and
    `check_shapes`."""
    looked_at: set[str] = set()
    for spec in specs:
        key = spec.model_dump_json(include={"attention", "model", "data", "start"})
        if spec.start is None or key in looked_at:
            continue
        looked_at.add(key)
        vocab_size = data_package.prepare(spec.data).vocab_size
        if spec.start.parent is not None:
            check_parent(spec, vocab_size)
        elif (found := origin_of(spec, store, identity_of(spec, store)[1], _silent)) is not None:
            check_shapes(spec, vocab_size, found)


def _check_shapes(name: str, theirs: Shapes, spec: RunSpec, vocab_size: int, is_whole: bool = False) -> None:
    """is_whole: the trained model has all parameters but those of a selection, and all are wanted."""
    model = outline(spec, vocab_size)
    own = model.attention_own_parameters() if is_whole else None
    if wrong := mismatch(theirs, shapes_of(model), own):
        raise SpecError(f"{name} has parameters of other shapes than this spec's model: {wrong}. Nothing was trained")


def _found(spec: RunSpec, store: str | Path, tell: Callable[[str], None], whole: bool) -> Origin:
    """The origin as it lies in the store or elsewhere; `whole`: every byte of it is compared with its seal."""
    start = spec.start
    assert start is not None
    if start.checkpoint is not None:
        return _checkpoint(start.checkpoint, tell, whole)
    if start.run is not None:
        name, prefix = f"start.run = {start.run}", start.run
    else:
        parent = parent_spec(spec)
        assert parent is not None
        name, prefix = "start.parent", identity_of(parent, store)[0]
    try:
        record = find_run(store, prefix) if start.run is not None else read_run(store, prefix)
    except StoreError as error:
        raise StoreError(f"{name}: {error}") from error
    shown = name if start.run == record.run_id else f"{name} (run {record.run_id})"
    return _of_run(shown, record, Path(store) / record.run_id, tell, whole)


def _of_run(name: str, record: RunRecord, folder: Path, tell: Callable[[str], None], whole: bool) -> Origin:
    if record.status != "done":
        why = f": {record.error.splitlines()[0]}" if record.error else ""
        raise StoreError(f"{name} is {record.status}{why}; a run can start from one that is done")
    saved = sound_checkpoint(folder, record, tell) if whole else find_checkpoint(folder.parent, folder.name)
    sealed = ((record.seal.files if record.seal else None) or {}).get(_THEIRS)
    if saved is None and (whole or sealed is None):
        raise StoreError(f"{name} has no checkpoint in {folder.parent}; train it again, or name another")
    before = record.environment.get("start")
    past = before.get("steps", 0) if isinstance(before, Mapping) else 0
    about = {
        "run": record.run_id,
        "weights": sealed.digest if sealed is not None else _digest(saved or folder),
        "steps": int(record.summary.get("steps") or 0) + int(past),
        "val_loss": record.summary.get("val_loss"),
    }
    return Origin(name, saved, about, record)


def _checkpoint(text: str, tell: Callable[[str], None], whole: bool) -> Origin:
    name = f"start.checkpoint = {text}"
    if is_foreign(text):
        model, about = foreign_model(text)
        return Origin(name, model.config.folder, about, foreign=model)
    path = expanded(text, SpecError).absolute()
    if not path.is_dir():
        raise StoreError(f"{name}: no such folder; name a checkpoint's folder, or a run's")
    run = next((folder for folder in (path, path.parent) if (folder / RECORD).is_file()), None)
    if run is not None and path in (run, run / "checkpoint"):
        record = read_run(run.parent, run.name)
        return _of_run(f"{name} (run {record.run_id})", record, run, tell, whole)
    if not ((path / WEIGHTS).is_file() and (path / "state.json").is_file()):
        pickled = next((file.name for end in ("bin", "pt", "pth") for file in sorted(path.glob(f"*.{end}"))), None)
        never = f"; {pickled} is a pickle, which executes code and is never read" if pickled else ""
        raise StoreError(
            f"{name}: no model that can be read{never}; accepted: a run's folder, a checkpoint's, with {WEIGHTS} and "
            f"state.json, or one of transformers, with config.json and {WEIGHTS} or {INDEX}"
        )
    if whole and (problems := checkpoint_problems(path)):
        raise StoreError(f"{name} is damaged: {problems[0]}")
    if whole:
        tell(f"{name} says nothing of its tokenizer: whether its text was cut into the same tokens is not known")
    return Origin(
        name, path, {"run": None, "weights": _digest(path), "steps": checkpoint.steps_done(path), "val_loss": None}
    )


def _digest(folder: Path) -> str:
    try:
        return file_seal(folder / WEIGHTS).digest
    except OSError as error:
        raise StoreError(f"{folder / WEIGHTS} cannot be read: {error.strerror or error}") from error


def _check_spec(found: Origin, spec: RunSpec, digests: Mapping[str, str]) -> None:
    """Raise when the origin's record says that its weights mean something else than this spec's would."""
    if found.record is None:
        return
    theirs = found.record.fingerprint.get("tokenizer")
    if theirs is not None and digests.get("tokenizer") != theirs:
        raise DataError(
            f"{found.name} was trained with another tokenizer (digest {theirs[:12]}, and here "
            f"{str(digests.get('tokenizer'))[:12]}): its embedding would be of other tokens. Give this run its data."
            "tokenizer and data.vocab_size, or name its tokenizer.json. Nothing was trained"
        )
    model = found.record.spec.get("model")
    if isinstance(model, Mapping):
        _check_model(model, spec, found.name)


def _check_model(theirs: Mapping[str, Any], spec: RunSpec, name: str) -> None:
    ours = spec.model.model_dump(mode="json")
    wrong = [
        f"model.{field} is {theirs[field]}, and here {value}"
        for field, value in ours.items()
        if field not in _FREE and field in theirs and theirs[field] != value
    ]
    if wrong:
        raise SpecError(f"{name} is another model than this spec's: {'; '.join(wrong)}. Nothing was trained")


def _recorded(store: str | Path, identity: str) -> dict[str, Any] | None:
    """What the record of a run that can resume says of its origin."""
    if not (Path(store) / identity / RECORD).exists() or find_checkpoint(store, identity) is None:
        return None
    before = read_run(store, identity).environment.get("start")
    return dict(before) if isinstance(before, Mapping) and type(before.get("steps")) is int else None


def _silent(message: str) -> None:
    pass
