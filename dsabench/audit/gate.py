"""The causality gate: every model is audited for look-ahead before it is trained, and a leak refuses the training.

It looks at the run's own model at full size, at the boundaries where a mistake is most likely, and at small copies with
the same attention, at every boundary, in fp64 where the attention allows it. Each is tried in train and eval mode and
in every stage of the run. The copies are also called at the last step of training, with other random states, one
window at a time, and, where the run packs documents, with two documents in a window. An attention that breaks another
part of its contract (contract_calls.py) is refused too. In long windows no variant is asked for a loss of its own.

It cannot see
    a leak that the initial weights hide and training opens, such as a gate that starts at zero (the small copies' gains
        and biases are moved for this reason, but only `dsabench audit RUN` looks at trained weights)
    a leak that needs tokens, steps or random states that were not tried, or at full size positions that were not: of
        patterns that repeat, it sees those within 8 positions and those of blocks of many round lengths
    a leak below the tolerances, one that bf16 or a CUDA graph brings in, and one into gradients alone
    code that behaves differently because it is audited.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from dsabench import ops
from dsabench.attention.base import Stage
from dsabench.attention.faults import file_of
from dsabench.attention.registry import variant
from dsabench.audit.boundaries import boundaries_of, other_rows
from dsabench.audit.causality import (
    TOLERANCE_FP64,
    Examination,
    Leak,
    later,
    layer_outputs,
    other_tokens,
    thorough,
)
from dsabench.audit.contract_calls import TOLERANCE, blamed, rehearse
from dsabench.audit.findings import Audit, Finding, Mode
from dsabench.audit.small_models import VOCABULARY, randomise, small_copies
from dsabench.engine.backend import resolved
from dsabench.engine.device import Execution
from dsabench.engine.starting_weights import StartingPoint
from dsabench.errors import DsabenchError, LeakError
from dsabench.model.transformer import Transformer, build
from dsabench.spec.run import RunSpec

CHANCES = 4
"""Further random states that a small copy is tried with in train mode."""

EVERYWHERE = 128
"""Longest window of which every boundary is tried at full size, in eval mode."""

EVERYWHERE_WITHOUT_COPIES = 512
"""The same when the attention takes no shorter window, in both modes."""

PACKED = ", two documents in a window"

LOSSES = 2048
"""Longest window in which an attention is asked for its own loss at full size, as in training."""

SEARCH_SECONDS = 10.0
"""Longest search for the first position at full size once a leak is known."""

_audits: dict[tuple[object, ...], Audit] = {}


def forget() -> None:
    """Drop all results, so that every model is audited anew."""
    _audits.clear()


def audit(spec: RunSpec, vocab_size: int, execution: Execution, start: StartingPoint | None = None) -> Audit:
    """The audit of the spec's initial model, by the backend that it trains with. Runs that differ only in what it does
    not look at, such as their seed, are audited once a process. start: the trained model whose weights it has."""
    spec = resolved(spec, execution)
    looked_at = spec.model_dump_json(include={"length", "attention", "model"})
    stages = len(list(_circumstances(spec)))
    how = (stages, spec.train.steps, spec.data.packing, vocab_size, execution.device, execution.fused)
    weights = None if start is None or start.folder is None else (start.folder, spec.seed)
    key = (looked_at, tuple(map(variant, spec.attention.kinds)), *how, weights)
    if key not in _audits:
        with torch.random.fork_rng(devices=[]):
            model = build(spec, vocab_size)
        if start is not None and weights is not None:
            start.load_into(model)
        found = audit_model(model.to(execution.device), execution)
        if found.crash is not None:
            return found
        _audits[key] = found
    return _audits[key]


def refuse_leaks(spec: RunSpec, vocab_size: int, execution: Execution, start: StartingPoint | None = None) -> Audit:
    """The audit, if the spec may be trained. Raises LeakError if it may not, and SpecError when the attention breaks
    another part of its contract; both name its file."""
    found = audit(spec, vocab_size, execution, start)
    if isinstance(found.crash, DsabenchError):
        raise found.crash
    if found.first is not None and not spec.allow_leak:
        files = filter(None, (file_of(variant(kind)) for kind in spec.attention.kinds))
        file = " or ".join(dict.fromkeys(map(str, files))) or "it"
        raise LeakError(
            f"attention {spec.attention.kind} {found.first}. Nothing was trained: mend {file} (`dsabench audit` and "
            "dsabench.testing show more), or set allow_leak = true to train it marked LEAK"
        )
    return found


def audit_model(model: Transformer, execution: Execution, examination: type[Examination] = Examination) -> Audit:
    """Audit a model with the weights that it has, which must be on the execution's device; its mode is restored. Small
    copies have weights of their own. examination: what looks at each of them."""
    # Small copies of a run that computes with the sparse kernels compute with them too, short as they are.
    spec, start = resolved(model.spec, execution), time.perf_counter()
    findings: list[Finding] = []
    copies: list[str] = []
    length, boundaries, crash = spec.length, 0, None
    was_training = model.training
    try:
        with _exactly(execution):
            tried = small_copies(spec, execution.device)
            stages = dict.fromkeys(stage for _, stage in _circumstances(spec))
            rehearse(randomise(build(next(iter(tried), spec), VOCABULARY)).to(execution.device), stages)
            for copy in tried:
                label, found = _audit_small(copy, execution, examination)
                copies.append(label)
                findings += found
            with ops.unfused(not execution.fused):
                length, boundaries, found = _audit_full(model, findings, not copies, examination)
            findings += found
    except Exception as error:  # of the model, which its training would raise too
        crash = blamed(model, error)
    finally:
        model.train(was_training)
        if execution.device.type == "cuda":
            torch.cuda.empty_cache()  # what lies there cannot serve another stream
    seconds = time.perf_counter() - start
    return Audit(tuple(findings), length, boundaries, tuple(copies), seconds, crash)


@contextmanager
def _exactly(execution: Execution) -> Iterator[None]:
    """fp32 as fp32: no TF32, no autocast; and the random state of the process as it was."""
    device = execution.device
    before = torch.get_float32_matmul_precision()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.autocast(device.type, enabled=False):
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


def _circumstances(spec: RunSpec) -> Iterator[tuple[Mode, Stage]]:
    stages: tuple[Stage, ...] = ("sparse", "dense") if spec.attention.warmup_steps(spec.train.steps) else ("sparse",)
    for stage in stages:
        yield "train", stage
        yield "eval", stage


def _audit_small(copy: RunSpec, execution: Execution, examination: type[Examination]) -> tuple[str, list[Finding]]:
    """Every boundary of a small copy, in fp64, or fp32 when the attention cannot compute in that."""
    length, k = copy.length, copy.attention.n_selected(copy.length)
    label = f"L={length}" + (f" k={k}" if k is not None else "")
    for dtype, tolerance in ((torch.float64, TOLERANCE_FP64), (torch.float32, TOLERANCE)):
        model = randomise(build(copy, VOCABULARY)).to(execution.device)
        name = f"{label} fp{torch.finfo(dtype).bits}"
        try:
            found: list[Finding] = []
            for mode, stage in _circumstances(copy):
                for how, leaks in _ways(model.to(dtype), mode, stage, tolerance, examination):
                    found += [Finding(leak, mode, stage, length, k, full_size=False, how=how) for leak in leaks]
                    if leaks:
                        break  # in other ways it leaks, too
            return name, found
        except Exception:  # of many kinds: no kernel for it, operands of two dtypes, no fp64 on the device
            if dtype == torch.float32:
                raise
    raise AssertionError("unreachable")


def _ways(
    model: Transformer, mode: Mode, stage: Stage, tolerance: float, examination: type[Examination]
) -> Iterator[tuple[str, list[Leak]]]:
    """(words for a way to call a small copy, the leaks that it shows), for each way."""
    length, steps = model.spec.length, model.spec.train.steps
    trials = [*other_rows(length), *(trial for t in range(length - 1) for trial in thorough(t, length))]
    look = partial(_examination, examination, model, mode, stage, length)
    looked = look(len(trials), tolerance)
    leaks = looked.leaks(trials)
    calls = looked.calls(seed=1 if mode == "eval" else 0)  # dropout may draw in train mode
    yield "", leaks if calls is None else [calls]  # where two calls differ anyway, comparing them shows nothing else
    if model.spec.data.packing == "documents":
        yield (
            PACKED,
            look(len(trials), tolerance, packed=True).leaks(trials),
        )
    some = [later(t, length) for t in sorted({0, length // 3, length // 2, length - 2}) if 0 <= t < length - 1]
    yield ", one window at a time", look(1, tolerance).leaks(some)
    if mode == "train":
        if steps > 1:
            last = look(len(trials), tolerance, step=steps - 1)
            yield f", step {steps - 1}", last.leaks(trials)
        for chance in range(1, CHANCES + 1):
            drawn = look(len(some), tolerance, chance=chance)
            yield ", another random state", drawn.leaks(some)


def _audit_full(
    model: Transformer, known: Sequence[Finding], everywhere: bool, examination: type[Examination]
) -> tuple[int, int, list[Finding]]:
    """(length, boundaries, findings) at the run's own size, or at the largest power-of-two part of it that fits."""
    length = model.spec.length
    while True:
        try:
            return length, *_audit_length(model, length, known, everywhere, examination)
        except torch.OutOfMemoryError:
            if length < 64:
                raise
            length //= 2


def _audit_length(
    model: Transformer, length: int, known: Sequence[Finding], everywhere: bool, examination: type[Examination]
) -> tuple[int, list[Finding]]:
    """everywhere: there is no small copy, so that every boundary is to be tried here."""
    k = model.spec.attention.n_selected(length)
    consecutive, others = boundaries_of(length, k, model.spec)
    rows, seen = min(8, max(2, 8192 // length)), {*consecutive}
    found: list[Finding] = []
    for mode, stage in _circumstances(model.spec):
        small = [one.leak for one in known if (one.mode, one.stage) == (mode, stage)]
        if any(leak.kind == "calls" for leak in small):
            continue  # comparing two calls shows nothing
        # In a long window an indexer's KL loss would take two thirds of the time, and no output depends on it.
        size, step = (examination, model, mode, stage, length, rows, TOLERANCE), model.spec.train.steps - 1
        looked = _examination(*size, losses=mode == "train" and length <= LOSSES, step=step)
        # Three batches of eight; in the warm-up one, because everything is attended to and k plays no part.
        trials = [later(t, length) for t in consecutive]
        if stage == "sparse":
            limit = EVERYWHERE_WITHOUT_COPIES if everywhere else EVERYWHERE if mode == "eval" else 0
            rest = sorted({*range(length - 1)} - {*consecutive}) if length <= limit else others
            seen |= {*rest}
            trials = [*other_rows(length), *(later(t, length) for t in rest), *trials]
        leaks = looked.leaks(trials)
        ahead = [leak for leak in [*leaks, *small] if leak.kind == "look-ahead"]
        if ahead:
            mine = [leak.position for leak in leaks if leak.kind == "look-ahead"]
            first = looked.first_leak(min(mine, default=length), SEARCH_SECONDS)
            leaks = [first or leak if leak.kind == "look-ahead" else leak for leak in leaks]
            if first is not None and not mine:
                leaks.append(first)
        found += [Finding(leak, mode, stage, length, k, full_size=True) for leak in leaks]
        if model.spec.data.packing == "documents" and (mode, stage) == ("train", "sparse") and not leaks:
            packed = _examination(*size, losses=length <= LOSSES, step=step, packed=True)
            ours = packed.leaks([later(t, length) for t in consecutive])
            found += [Finding(leak, mode, stage, length, k, full_size=True, how=PACKED) for leak in ours]
    return len(seen), found


def _examination(
    examination: type[Examination],
    model: Transformer,
    mode: Mode,
    stage: Stage,
    length: int,
    rows: int,
    tolerance: float,
    *,
    losses: bool = True,
    packed: bool = False,
    step: int = 0,
    chance: int = 0,
) -> Examination:
    model.train(mode == "train")
    generator = torch.Generator().manual_seed(length)
    x_T = torch.randint(model.vocab_size, (length,), generator=generator).to(model.embedding.weight.device)
    other = other_tokens(x_T, model.vocab_size, seed=length)
    outputs = layer_outputs(model, stage, losses, packed, step)
    return examination(lambda x_RT, seed: outputs(x_RT, seed + chance), x_T, other, rows, tolerance)
