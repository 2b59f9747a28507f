"""The correctness check of the bench: no implementation gets a time before its results were seen to be right.

On a small input of the same heads and dtype: output, loss and all gradients against `reference` in fp64. At each timed
length: outputs and dQ of a few queries, the last among them, computed in fp64 from the same inputs, because a kernel
can be right on short inputs and wrong on long ones (an index beyond 2^31, a list that overflows).

Legend: B batch, T query, S key, H query heads, G key/value heads, D head width, J indexer heads, I indexer width,
K selected slots, R chosen queries, M heads that share a KV head.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dsabench.attention.dsa import masked, reference
from dsabench.bench.cases import Case
from dsabench.bench.document import Check, Settings
from dsabench.bench.inputs import Inputs, check_inputs
from dsabench.engine.device import first_line

TOLERANCE = {"bf16": 3e-2, "fp32": 1e-4}
"""Largest relative error of any result on the small input. bf16 rounds to 4e-3 and sums of many rounded numbers, such
as dV by the reference, are off by 1e-2; wrong kernels are off by far more."""

ROWS_TOLERANCE = {"bf16": 3e-2, "fp32": 1e-3}
"""Largest relative error of the chosen queries, for dense attention and a window."""

SELECTED_TOLERANCE = 0.1
"""The same over a selection. Two keys whose scores differ by rounding alone may swap, which is no error; one swap among
k = 2048 keys moves an output by 3 %."""

_ROUNDED_TOLERANCE = 0.5
"""The same where scores are rounded to bf16, as by `dsa-masked`: many keys swap."""

_LENGTHS = {"cuda": (333, 40), "cpu": (21, 6)}
"""Length of the small input, and its k, by kind of device."""

_WHOLE = 64, (320, 48)
"""On a GPU Triton compiles another kernel for lengths and k that 16 divides. Where all timed lengths are multiples of
the first number, the small input is one too: the kernels that are checked are then those that are timed."""


def check(case_of: Case, settings: Settings, device: torch.device) -> Check:
    """Run it once on the small input. An error that it raises is a result too: status `failed`, or `skipped` when
    PyTorch has no such kernel."""
    length = settings.lengths[0]
    about: dict[str, Any] = {
        "implementation": case_of.name,
        "stage": case_of.stage,
        "tolerance": TOLERANCE[settings.dtype],
    }
    x = check_inputs(settings, length, device, ties=not case_of.any_of_ties)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = run_once(case_of, x)
            errors = {} if case_of.unlike else compare(found, expected(case_of, settings, x))
            broken = [name for name, result in found.items() if not bool(result.isfinite().all())]  # a fault shows here
        except Exception as error:  # a kernel's compiler, a driver, a bug: the bench goes on with the others
            case_of.release()
            if "No available kernel" in str(error):
                return Check(
                    **about, ok=False, status="skipped", reason=_no_kernel([str(one.message) for one in caught])
                )
            return Check(**about, ok=False, status="failed", reason=first_line(error))
    case_of.release()
    if case_of.unlike:
        reason = f"{broken[0]} is not finite everywhere" if broken else None
        return Check(**about, ok=not broken, status="WRONG" if broken else "timed", reason=reason)
    worst = max(errors, key=lambda name: errors[name] if math.isfinite(errors[name]) else math.inf)
    off, limit = errors[worst], TOLERANCE[settings.dtype]
    if off <= limit:
        return Check(**about, ok=True, error=off, worst=worst, status="timed")
    how = f"{worst} is off by {off:.1e} of its size (limit {limit:.0e})"
    return Check(**about, ok=False, error=off if math.isfinite(off) else None, worst=worst, status="WRONG", reason=how)


def _no_kernel(warned: list[str]) -> str:
    """The reason why a backend of scaled_dot_product_attention does not take these inputs, from PyTorch's warnings,
    which also name the other backends (disabled on purpose)."""
    said = [text.split(" (Triggered")[0].strip() for text in warned]
    why = [text for text in said if "runtime disabled" not in text and not text.endswith("because:")]
    return "PyTorch has no such kernel for these inputs" + (f": {why[0]}".rstrip(".") if why else "")


def small(settings: Settings, device: torch.device) -> Settings:
    """The settings of the small input: a length like the timed ones, fewer keys than tokens, two rows."""
    length, k = _LENGTHS[device.type]
    unit, whole = _WHOLE
    if device.type == "cuda" and not any(one % unit for one in (*settings.lengths, settings.top_k)):
        length, k = whole
    return settings.model_copy(update={"lengths": [length], "top_k": min(k, settings.top_k), "batch": 2})


def run_once(case: Case, x: Inputs) -> dict[str, Tensor]:
    """Results of one forward and backward pass; the case is set up for x afterwards."""
    case.setup(x)
    outputs = case.forward()
    return case.results(outputs, case.backward(outputs))


def expected(case: Case, settings: Settings, x: Inputs) -> dict[str, Tensor]:
    """The results of the case by attention.dsa.reference in fp64."""
    x = case.seen(x)
    leaves = [part.double().requires_grad_() for part in x[:6]]
    q_BTHD, k_BSGD, v_BSGD, *index = leaves
    length = q_BTHD.shape[1]
    allowed = reference.allowed_keys(length, None, q_BTHD.device)
    if case.family != "dsa":
        if case.family == "window":
            allowed = allowed & ~reference.allowed_keys(length, None, q_BTHD.device).tril(-settings.top_k)
        out_BTHD, _ = masked.attention(q_BTHD, k_BSGD, v_BSGD, allowed)
        grads = torch.autograd.grad(out_BTHD, leaves[:3], x.d_out_BTHD.double())
        return dict(zip(("out", "d q", "d k", "d v"), (out_BTHD.detach(), *grads), strict=True))
    scores_BTS = reference.index_scores(*index)
    if case.stage == "dense":
        out_BTHD, p_BTS = masked.attention(q_BTHD, k_BSGD, v_BSGD, allowed)
        loss = reference.indexer_kl(scores_BTS, p_BTS, allowed)
    else:
        selected_BTK = reference.select_top_k(scores_BTS.detach(), allowed, settings.top_k)
        out_BTHD, p_BTK = reference.attention(q_BTHD, k_BSGD, v_BSGD, selected_BTK)
        slots_BTK = scores_BTS.gather(-1, selected_BTK.clamp(min=0))
        loss = reference.indexer_kl(slots_BTK, p_BTK, selected_BTK != reference.EMPTY)
    grads = torch.autograd.grad((out_BTHD, loss), leaves, (x.d_out_BTHD.double(), torch.ones_like(loss)))
    names = ("out", "loss", "d q", "d k", "d v", "d q_index", "d k_index", "d w_index")
    return case.wanted(dict(zip(names, (out_BTHD.detach(), loss.detach(), *grads), strict=True)))


def compare(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, float]:
    """|found - wanted| / |wanted| of each result; NaN stays NaN, and a missing result is one."""
    return {name: _error(found[name], x) if name in found else math.nan for name, x in wanted.items()}


def _error(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape:
        return math.inf
    return float((found.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-30))


def wrong_rows(case: Case, settings: Settings, x: Inputs, found: Mapping[str, Tensor]) -> str | None:
    """A sentence that says what is wrong with the results at this length; None when nothing is seen to be."""
    for name, result in found.items():
        if not bool(result.isfinite().all()):
            return f"{name} is not finite everywhere"
    if case.unlike:
        return None
    x = case.seen(x)
    length = x.q_BTHD.shape[1]
    rows_R = torch.tensor(sorted({(length - 1) * i // 5 for i in range(6)}), device=x.q_BTHD.device)
    if case.any_of_ties:  # a query whose weights are all negative has its best scores, zeros, in common
        certain_R = (x.w_BTJ[-1, rows_R] > 0).any(-1) | (rows_R < settings.top_k)
        rows_R = rows_R[certain_R]
    out_RHD, d_q_RHD = _rows(case, settings, x, rows_R)
    limit = _rows_tolerance(case, settings)
    for row, mine, theirs in zip(rows_R.tolist(), found["out"][-1, rows_R], out_RHD, strict=True):
        error = _error(mine, theirs)
        if not error <= limit:
            return f"out of query {row} is off by {error:.1e} of its size (limit {limit:.0e})"
    # Together: where all of a query's attention is on one key, its dQ is nothing but rounding.
    error = _error(found["d q"][-1, rows_R], d_q_RHD)
    if not error <= limit:
        return f"d q of queries {rows_R.tolist()} is off by {error:.1e} of its size (limit {limit:.0e})"
    return None


def _rows_tolerance(case: Case, settings: Settings) -> float:
    if case.family != "dsa" or case.stage == "dense":
        return ROWS_TOLERANCE[settings.dtype]
    rounded = case.name == "dsa-masked" and settings.dtype == "bf16"
    return _ROUNDED_TOLERANCE if rounded else SELECTED_TOLERANCE


def _rows(case: Case, settings: Settings, x: Inputs, rows_R: Tensor) -> tuple[Tensor, Tensor]:
    """out and dQ of these queries of the last batch row, (R, H, D), in fp64."""
    length = x.q_BTHD.shape[1]
    key_S = torch.arange(length, device=rows_R.device)
    keep_RS = key_S <= rows_R[:, None]
    if case.family == "window":
        keep_RS = keep_RS & (key_S > rows_R[:, None] - settings.top_k)
    elif case.family == "dsa" and case.stage == "sparse":
        q_RJI, k_SI, w_RJ = x.q_BTJI[-1, rows_R].double(), x.k_BSI[-1].double(), x.w_BTJ[-1, rows_R].double()
        scores_RS = torch.einsum("rj,rjs->rs", w_RJ, torch.einsum("rji,si->rjs", q_RJI, k_SI).relu())
        keep_RS = masked.selection_mask(scores_RS[None], keep_RS, settings.top_k)[0]
    groups = x.k_BSGD.shape[2]
    q_RGMD = x.q_BTHD[-1, rows_R].double().unflatten(1, (groups, -1)).requires_grad_()
    d_out_RGMD = x.d_out_BTHD[-1, rows_R].double().unflatten(1, (groups, -1))
    outs, grads = [], []
    for g in range(groups):  # one at a time: K and V in fp64
        k_SD, v_SD = x.k_BSGD[-1, :, g].double(), x.v_BSGD[-1, :, g].double()
        q_RMD = q_RGMD[:, g]
        scores_RMS = torch.einsum("rmd,sd->rms", q_RMD, k_SD) * q_RMD.shape[-1] ** -0.5
        p_RMS = scores_RMS.masked_fill(~keep_RS[:, None], -torch.inf).softmax(-1)
        out_RMD = torch.einsum("rms,sd->rmd", p_RMS, v_SD)
        grads.append(torch.autograd.grad(out_RMD, q_RMD, d_out_RGMD[:, g])[0])
        outs.append(out_RMD.detach())
    return torch.cat(outs, dim=1), torch.cat(grads, dim=1)
