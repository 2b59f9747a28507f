"""The checks of `dsabench audit`: soundness of an experiment before, or after, it is run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from dsabench import data as data_package
from dsabench.audit import gate, soundness
from dsabench.audit.findings import Audit
from dsabench.audit.small_models import VOCABULARY, small_copies
from dsabench.data import TaskData, TokenData, cut
from dsabench.data.overlap import DUPLICATED, RUN, training_overlap
from dsabench.engine.backend import resolved
from dsabench.engine.checkpoint import steps_done
from dsabench.engine.device import Execution, resolve
from dsabench.engine.optimizer import stage_at
from dsabench.errors import DataError
from dsabench.model.transformer import Transformer, build
from dsabench.models import stored_model
from dsabench.spec.run import RunSpec
from dsabench.spec.stored_spec import stored_spec
from dsabench.store import find_run
from dsabench.store.layout import run_folder
from dsabench.store.verification import sound_checkpoint

Result = Literal["ok", "LEAK", "FAIL", "n.a.", "info"]

FIRST_LOSS_TOKENS = 4096
"""Validation tokens, in whole windows, that the first loss is measured on."""


@dataclass(frozen=True)
class Check:
    """One check and its result."""

    check: str
    result: Result
    """`info` is a fact without a judgement, `n.a.` does not apply."""

    detail: str


@dataclass(frozen=True)
class Examination:
    """All checks of one attention at one length, or of one run."""

    attention: str
    length: int
    seed: int
    run_id: str | None
    weights: str
    """`initial`, or `step N's`."""

    device: str
    audit: Audit
    checks: tuple[Check, ...]

    @property
    def failed(self) -> bool:
        """Whether a check failed or found a leak."""
        return any(check.result in ("LEAK", "FAIL") for check in self.checks)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        names = ("attention", "length", "seed", "run_id", "weights", "device", "failed")
        return {
            **{name: getattr(self, name) for name in names},
            "causality": self.audit.record(),
            "checks": [vars(check) for check in self.checks],
        }


def examine(spec: RunSpec, execution: Execution, notify: Callable[[str], None]) -> Examination:
    """Examine the spec's initial model. Raises what its model raises, and DataError."""
    data = data_package.prepare(spec.data, progress=notify)
    model = build(spec, data.vocab_size).to(execution.device)
    return _examine(model, execution, data, "initial", None)


def examine_run(store: str | Path, run: str, device: str | None, notify: Callable[[str], None]) -> Examination:
    """Examine a stored run, with its checkpoint's weights if it has one; without its text if that cannot be read."""
    record = find_run(store, run)
    engine = record.spec.get("engine", {})
    here = {**engine, "device": device or "auto"} if isinstance(engine, dict) else engine
    spec = stored_spec({**record.spec, "engine": here}, record.run_id)
    execution = resolve(spec.engine)
    data: TokenData | TaskData | str
    try:
        data = data_package.prepare(spec.data, progress=notify)
    except DataError as error:
        data = str(error)
    folder = sound_checkpoint(run_folder(Path(store), record.run_id), record, notify)
    if folder is None and isinstance(data, str):
        raise DataError(f"run {record.run_id} has no checkpoint, and its text cannot be read: {data}")
    if folder is not None:
        model, weights = stored_model(record, folder), f"step {steps_done(folder):,}'s"
    else:
        assert not isinstance(data, str)
        notify(f"{record.run_id} ({record.status}) has no checkpoint: its initial weights are looked at")
        model, weights = build(spec, data.vocab_size), "initial"
    return _examine(model.to(execution.device), execution, data, weights, record.run_id)


def _examine(
    model: Transformer, execution: Execution, data: TokenData | TaskData | str, weights: str, run_id: str | None
) -> Examination:
    spec = model.spec
    audit = gate.audit_model(model, execution)
    if audit.crash is not None:
        raise audit.crash
    checks = [*_causal(spec, audit), _shared_start(spec, model.vocab_size), *_gradients(spec, execution)]
    if isinstance(data, str):
        checks += [Check(name, "n.a.", data) for name in ("first loss near ln V", "held-out text")]
    else:
        windows = cut(data, spec.length).evaluation("val", spec.train.eval_tokens)
        checks += [_first_loss(spec, model.vocab_size, windows.tokens, execution)]
        checks += [
            _overlap(data, windows.tokens)
            if isinstance(data, TokenData)
            else Check("held-out text", "n.a.", "windows of a task are made, not taken from a text")
        ]
    kind, device = spec.attention.kind, str(execution.device)
    return Examination(kind, spec.length, spec.seed, run_id, weights, device, audit, tuple(checks))


def _causal(spec: RunSpec, audit: Audit) -> Iterator[Check]:
    stages = "both stages" if spec.attention.warmup_steps(spec.train.steps) else "one stage"
    tried = f"{audit.boundaries} boundaries at L={audit.length}" if audit.boundaries else f"L={audit.length}"
    copies = f" and all of small copies ({'; '.join(audit.copies)})" if audit.copies else ", no small copy"
    asked: tuple[tuple[str, str, str | None, str], ...] = (
        ("causal, train mode", "look-ahead", "train", f"{tried}{copies}, {stages}"),
        ("causal, eval mode", "look-ahead", "eval", "the same"),
        ("rows independent", "rows", None, "other rows of the batch change nothing"),
        ("calls independent", "calls", None, "neither chance nor earlier calls change anything"),
    )
    restless = next((one for one in audit.findings if one.leak.kind == "calls"), None)
    for name, kind, mode, fine in asked:
        found = [one for one in audit.findings if one.leak.kind == kind and mode in (None, one.mode)]
        if found:
            first = min(found, key=lambda one: (not one.full_size, one.leak.position))
            yield Check(name, "LEAK", str(first))
        elif kind != "calls" and restless is not None and mode in (None, restless.mode):
            yield Check(name, "n.a.", "cannot be told while calls differ")
        else:
            yield Check(name, "ok", fine)


def _shared_start(spec: RunSpec, vocab_size: int) -> Check:
    name = "same start as dense"
    if spec.attention.kind == "dense":
        return Check(name, "n.a.", "this is dense")
    start = soundness.shared_start(spec, vocab_size)
    if start.different or start.missing:
        wrong = [*(f"{one} differs" for one in start.different), *(f"{one} is missing" for one in start.missing)]
        return Check(name, "FAIL", f"{len(wrong)} of {len(wrong) + len(start.same)} tensors: {', '.join(wrong[:3])}")
    own = f"; {len(start.own)} are its own" if start.own else ""
    return Check(name, "ok", f"{len(start.same)} shared tensors are bit-identical at seed {spec.seed}{own}")


def _gradients(spec: RunSpec, execution: Execution) -> Iterator[Check]:
    """On a small copy: how gradients are routed does not depend on sizes."""
    spec = resolved(spec, execution)
    copy = next(iter(small_copies(spec, execution.device)), spec)
    stages = [stage_at(spec, 0), stage_at(spec, spec.train.steps - 1)]
    generator = torch.Generator().manual_seed(2)
    tokens_BT = torch.randint(VOCABULARY, (2, copy.length + 1), generator=generator).to(execution.device)
    model = build(copy, VOCABULARY).to(execution.device)
    to_own, to_backbone, missed, has_loss = set[str](), set[str](), set[str](), False
    for stage in dict.fromkeys(stages):
        found = soundness.routing(model, tokens_BT, stage)
        to_own |= found.by_language_model & found.own
        if found.by_own_loss is not None:
            has_loss = True
            to_backbone |= found.by_own_loss & found.backbone
            # With one key there is nothing to choose, and a softmax over one slot teaches nothing.
            if copy.attention.n_selected(copy.length) != 1:
                missed |= found.own - found.by_own_loss
    own = len(model.attention_own_parameters())
    if not own:
        yield Check("LM loss -> indexer", "n.a.", "it has no indexer")
    else:
        yield _gradient("LM loss -> indexer", to_own, "reaches", f"zero on all {own} tensors")
    if not has_loss:
        yield Check("KL -> backbone", "n.a.", "it has no loss of its own")
        yield Check("KL -> indexer", "n.a.", "it has no loss of its own" + (": an indexer stays as drawn" * bool(own)))
        return
    yield _gradient("KL -> backbone", to_backbone, "reaches", "zero on all tensors")
    if own:
        yield _gradient("KL -> indexer", missed, "does not reach", f"not zero on each of {own} tensors")
    else:
        yield Check("KL -> indexer", "n.a.", "it has no indexer")


def _gradient(name: str, wrong: set[str], verb: str, fine: str) -> Check:
    if not wrong:
        return Check(name, "ok", fine)
    return Check(name, "FAIL", f"{verb} {len(wrong)} tensors: {', '.join(sorted(wrong)[:3])}")


def _first_loss(spec: RunSpec, vocab_size: int, windows_NT: np.ndarray, execution: Execution) -> Check:
    name = "first loss near ln V"
    if spec.start is not None:
        return Check(name, "n.a.", "the run starts from a trained model, not from drawn weights")
    few_NT = windows_NT[: max(1, FIRST_LOSS_TOKENS // spec.length)]
    tokens_NT = torch.from_numpy(few_NT.astype(np.int64)).to(execution.device)
    model = build(spec, vocab_size).to(execution.device)
    loss = soundness.mean_loss(model, tokens_NT, stage_at(spec, 0))
    fine = soundness.starts_sanely(loss, vocab_size)
    detail = f"{loss:.3f} nats before training; ln V = {math.log(vocab_size):.3f}"
    return Check(name, "ok" if fine else "FAIL", detail)


def _overlap(data: TokenData, windows_NT: np.ndarray) -> Check:
    name = "held-out text"
    found = training_overlap(data, windows_NT)
    if found is None:
        return Check(name, "n.a.", f"no window holds {RUN} characters")
    told = (
        f"{found.window_share:.1%} of {found.n_windows:,} validation windows hold {RUN} characters in a row "
        f"that also stand in training text, white space aside; {found.run_share:.2%} of all such runs"
    )
    if found.run_share < DUPLICATED:
        return Check(name, "info", told)
    mend = "take copies out of the text" if data.overlapping is None else "make data.split documents"
    return Check(name, "FAIL", f"{found.run_share:.0%} duplicated: the validation loss measures memory; {mend}. {told}")
