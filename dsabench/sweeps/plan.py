"""The plan of a sweep: its runs and their identities, time, memory, and how many of them share the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from dsabench import data as data_package
from dsabench.attention.base import Stage
from dsabench.data import Amounts, Survey, TaskData, TokenData, cut
from dsabench.engine import memory_plan
from dsabench.engine.checkpoint import steps_done
from dsabench.engine.device import Execution, matmul_rate
from dsabench.engine.memory_plan import MemoryPlan
from dsabench.engine.slot import shape_of
from dsabench.errors import DataError, StoreError
from dsabench.metrics import epochs
from dsabench.model.transformer import flops_per_window, outline
from dsabench.progress.time_left import Kind, RunParts, Timetable
from dsabench.spec.data_settings import DataSpec
from dsabench.spec.parent_spec import parent_spec
from dsabench.spec.run import RunSpec
from dsabench.spec.sweep import Sweep
from dsabench.store import DamagedError, find_checkpoint, find_run, read_run
from dsabench.store.remedies import way_out
from dsabench.store.table import DAMAGED, row_of
from dsabench.sweeps.origin import identity_of

MOST_AT_A_TIME = 5
"""Runs that share a GPU unless the user says another number: the default number of seeds."""

SMALL_STEP_SECONDS = 5e-3
"""A step that takes less than this at the measured matrix-product rate leaves a GPU room for others."""


SOON_BYTES = 4_000_000
"""Text that is split, tokenized and looked at within seconds."""


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep, its identity, and its status in the store."""

    spec: RunSpec
    run_id: str
    status: str
    """`new`, or the status that the store's record has; `damaged` also of one that cannot be read."""
    amounts: Amounts | None = None
    """Text to train on and held out; None for a task."""

    at: int = 0
    """Steps that its checkpoint has behind it, where it was interrupted."""

    parent: str | None = None
    """The run of this plan that must be done before, because this one starts from it; None of a done run."""

    for_children: bool = False
    """Whether it is trained only because others start from it: it is none of the sweep's runs."""

    epochs: float | None = None
    """Times that it sees its training text; None for a task."""

    is_rough: bool = False
    """Whether epochs is an estimate, because the text was not encoded yet."""

    problem: str = ""
    """Why it is damaged, and the way out; such a run is neither taken for done nor trained over."""

    @property
    def is_left(self) -> bool:
        """Whether it is to be trained."""
        return self.status not in ("done", *DAMAGED)


def plan(
    specs: Sequence[RunSpec], store: str | Path, surveys: dict[DataSpec, Survey] | None = None
) -> list[PlannedRun]:
    """The runs in order, each after the parent that it starts from, with their identities and the store's status. A
    parent that is not there is left out where all its children are done. Reads the corpus, trains nothing.

    surveys: of corpora that were looked at before; those that are looked at now are added.
    """
    surveys = {} if surveys is None else surveys
    planned: dict[str, PlannedRun] = {}

    def add(spec: RunSpec, parent: str | None = None, for_children: bool = False) -> str:
        if spec.data not in surveys:
            surveys[spec.data] = data_package.survey(spec.data)
        found = surveys[spec.data]
        name, _ = identity_of(spec, store, found.fingerprint)
        if name not in planned:
            run = _planned_run(spec, name, store, found)
            waits_for = parent if run.is_left else None
            planned[name] = replace(run, parent=waits_for, for_children=for_children)
        elif not for_children:
            planned[name] = replace(planned[name], for_children=False)
        return name

    for spec in specs:
        above = parent_spec(spec)
        add(spec, None if above is None else add(above, for_children=True))
    needed = {run.parent for run in planned.values()}
    return [run for name, run in planned.items() if not run.for_children or run.status == "done" or name in needed]


def of_sweep(planned: Sequence[PlannedRun]) -> list[PlannedRun]:
    """The runs that were asked for, without those that are trained only for others to start from."""
    return [run for run in planned if not run.for_children]


def _planned_run(spec: RunSpec, identity: str, store: str | Path, found: Survey) -> PlannedRun:
    try:
        known, at = status(store, identity), 0
    except DamagedError as error:
        return PlannedRun(spec, identity, "damaged", found.amounts, problem=str(error))
    if known == "interrupted" and (saved := find_checkpoint(store, identity)) is not None:
        with suppress(StoreError):  # whether it is whole is seen when it is taken up
            at = steps_done(saved)
    steps = spec.train.steps + _steps_behind(spec, store)
    seen = epochs(spec.tokens_per_step * steps, found.train_tokens)
    return PlannedRun(spec, identity, known, found.amounts, at, epochs=seen, is_rough=found.is_rough)


def _steps_behind(spec: RunSpec, store: str | Path) -> int:
    """Steps of the parent, or of the stored run, that the run starts from: it goes on in the same text."""
    if (parent := parent_spec(spec)) is not None:
        return parent.train.steps
    if spec.start is not None and spec.start.run is not None:
        record = find_run(store, spec.start.run)
        before = record.environment.get("start")
        behind = before.get("steps") if isinstance(before, dict) else None
        return sum(steps for steps in (record.summary.get("steps"), behind) if isinstance(steps, int))
    return 0


def rungs(sweep: Sweep, store: str | Path) -> dict[str, list[str]]:
    """The identities of the runs of each rung of a sweep's ladder; none without one. Reads the corpus."""
    digests: dict[DataSpec, dict[str, str]] = {}
    found: dict[str, list[str]] = {}
    for name, specs in sweep.rungs().items():
        for spec in specs:
            if spec.data not in digests:
                digests[spec.data] = data_package.fingerprint(spec.data)
        found[name] = [identity_of(spec, store, digests[spec.data])[0] for spec in specs]
    return found


def status(store: str | Path, identity: str) -> str:
    """The status of a run's record in the store, or `new`.

    Raises:
        DamagedError: it cannot be read or is not what was written, or it is done and its metrics are not; the message
            names the way out. What an unfinished run left is compared when it is taken up.
    """
    folder = Path(store) / identity
    if not (folder / "run.json").exists():
        return "new"
    with suppress(StoreError):
        if (known := read_run(store, identity).status) != "done":
            return known
    row, _ = row_of(folder)
    if row["status"] in DAMAGED:
        raise DamagedError(way_out(store, identity, str(row["status"]), str(row["error"])))
    return str(row["status"])


def timetable(
    planned: Sequence[PlannedRun], execution: Execution, *, at_a_time: int = 1, n_devices: int = 1
) -> Timetable:
    """Rough seconds of the parts of every run that is not done, and of audits and libraries before.

    at_a_time: runs that share a device. A step takes its training FLOPs at a share of the measured matrix-product rate
    that small models reach, or launch-bound time where that is longer; an evaluation forward FLOPs. What was measured
    to be slower than that on two CPU cores: evaluations, and twice so those that look at a selection. Runs that share
    a device, or processes that share a CPU's cores, take as many times longer.
    """
    todo = [run for run in planned if run.is_left]
    if not todo:
        return Timetable({})
    is_cpu = execution.device.type == "cpu"
    rate = matmul_rate(execution.device, execution.precision) * 0.35
    launches = 2.5e-3 if execution.graph else 20e-3
    processes = execution.ranks.size if execution.device.type == "cuda" else 1
    sharing = at_a_time * (n_devices if is_cpu else 1)
    shapes: dict[str, RunParts] = {}
    runs: dict[str, RunParts] = {}
    before = 0.0 if is_cpu else 15.0  # kernels are built once
    for run in todo:
        spec, train = run.spec, run.spec.train
        look = {"attention", "length", "model"}
        shape = f"{spec.model_dump_json(include=look)} {spec.batch_size} {train.eval_tokens}"
        if shape not in shapes:
            # Of a CPU, as two cores were measured to take for models of no size.
            floor = 4e-3 * (1 + spec.model.n_layers) if is_cpu else launches
            dense, step = (
                max(floor, sum(flops_per_step(spec, stage).values()) / processes / rate)
                for stage in ("dense", "sparse")
            )
            selects = spec.attention.n_selected(spec.length) is not None
            samples = 2 * (train.eval_tokens / spec.tokens_per_step) * (step / 3) * processes
            before += (2.5 if selects else 0.7) + (20 if selects else 10) * 8 / spec.batch_size * step / 3  # its audit
            seconds: dict[Kind, float] = {
                "start": 0.5 * sharing,
                "warmup": dense * sharing,
                "step": step * sharing,
                "evaluation": samples * (2.4 if selects else 1.2) * sharing,
            }
            number = len(shapes)
            shapes[shape] = RunParts((spec.attention.kind, number), train.steps, 0, train.eval_every, seconds)
        runs[run.run_id] = replace(
            shapes[shape],
            steps=train.steps,
            warmup=spec.attention.warmup_steps(train.steps),
            eval_every=train.eval_every,
            at=min(run.at, train.steps),
        )
    return Timetable(runs, at_a_time * n_devices, before)


def check_data(
    planned: Sequence[PlannedRun],
    notify: Callable[[str], None] = lambda message: None,
    counted: Callable[[str, float], None] = lambda part, share: None,
) -> None:
    """Prepare the data of every run that is to be trained, and raise DataError when a length does not fit it.

    Before the first run of a sweep, so that a length too long for the documents is not found hours later.
    """
    lengths: dict[DataSpec, dict[int, list[int]]] = {}
    for run in planned:
        if run.is_left:
            lengths.setdefault(run.spec.data, {}).setdefault(run.spec.length, []).extend(run.spec.train.eval_multiples)
    for spec, wanted in lengths.items():
        data = data_package.prepare(spec, progress=notify, counted=counted)
        for length, multiples in wanted.items():
            cut(data, length)
            check_longer(data, length, dict.fromkeys(multiples))


def check_longer(data: TokenData | TaskData, length: int, multiples: Iterable[int]) -> None:
    """Raise DataError where the data have no windows of so many times the length, as train.eval_multiples asks for."""
    for several in multiples:
        try:
            cut(data, several * length)
        except DataError as error:
            raise DataError(f"train.eval_multiples: {several} times {length} tokens: {error}") from None


def check_small_data(planned: Sequence[PlannedRun]) -> None:
    """`check_data` of what is soon checked, for a plan that trains nothing."""
    check_data([run for run in planned if is_soon_checked(run)])


def is_soon_checked(run: PlannedRun) -> bool:
    """Whether `check_data` takes no more than seconds, because the text is small; of a task there is nothing to do."""
    return run.amounts is None or run.amounts.n_bytes <= SOON_BYTES


def fit(planned: Sequence[PlannedRun], execution: Execution) -> list[tuple[RunSpec, MemoryPlan]]:
    """For every shape of the runs that are not done: one of its specs, and how it fits into memory.

    With the vocabulary that the spec asks for: reads no data. Raises SpecError and DeviceError, as memory_plan does.
    """
    shapes = {shape_of(run.spec).model_dump_json(): run.spec for run in planned if run.is_left}
    return [(spec, memory_plan.plan(spec, spec.expected_vocab_size, execution)) for spec in shapes.values()]


def flops_per_step(spec: RunSpec, stage: Stage = "sparse") -> dict[str, float]:
    """Model FLOPs of a step, of the last stage unless told otherwise, by item, with the vocabulary that the spec asks
    for."""
    model = outline(spec, spec.expected_vocab_size)
    return {item: spec.batch_size * value for item, value in flops_per_window(model, stage).items()}


def choose_concurrency(planned: Sequence[PlannedRun], execution: Execution, n_devices: int = 1) -> int:
    """How many runs share a device: several when their steps are too small to fill a GPU, as many as fit; else 1."""
    todo = [run.spec for run in planned if run.is_left]
    if why_alone(todo, execution) or len(todo) < 2:
        return 1
    rate = matmul_rate(execution.device, execution.precision)
    fits = min(MOST_AT_A_TIME, math.ceil(len(todo) / n_devices))
    for spec, plan in fit(planned, execution):
        if sum(flops_per_step(spec).values()) / rate > SMALL_STEP_SECONDS:
            return 1
        fits = min(fits, int(memory_plan.USABLE * (memory_plan.capacity(execution) or 0) / plan.total))
    return max(1, fits)


def why_alone(specs: Sequence[RunSpec], execution: Execution) -> str | None:
    """Why runs cannot share the device; None when they can."""
    if not execution.graph:
        return "runs share a device only through CUDA graphs, on a GPU with engine.compile = auto, graph or full"
    if any(spec.model.dropout for spec in specs):
        return "with model.dropout the graphs of all runs draw from one random state"
    return None
