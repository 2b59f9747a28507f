"""The boundaries and windows that an audit tries, and small copies of the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from audited import CPU, INDEXER, audit, every_seventh, peek, plant, spec_of
from torch import Tensor

from dsabench.attention.base import AttentionContext, AttentionOutput
from dsabench.attention.dsa.layer import DSA
from dsabench.audit import gate, small_models
from dsabench.audit.boundaries import boundaries_of
from dsabench.audit.small_models import small_copies

pytestmark = pytest.mark.usefixtures("no_audit_remembered")

# Sizes.


def test_boundaries_cover_eight_in_a_row_and_the_edges_of_k() -> None:
    spec = spec_of()
    for length in (2, 3, 9, 16, 64, 69, 70, 256, 4096):
        for k in (None, 1, 5, length // 2, length, 3 * length):
            consecutive, others = boundaries_of(length, k, spec)
            assert consecutive == list(range(consecutive[0], consecutive[0] + min(8, length - 1)))
            tried = {*consecutive, *others}
            assert {0, length - 2} <= tried <= set(range(length - 1))
            assert tried >= {t for t in ([] if k is None else [k - 1, k, k + 1]) if t <= length - 2}
            assert (consecutive, others) == boundaries_of(length, k, spec)
            if length >= 128:
                assert any(t % 64 == 63 for t in consecutive)


@pytest.mark.parametrize("length", [1024, 1000, 4096])
def test_boundaries_lie_at_the_ends_of_blocks_of_many_lengths(length: int) -> None:
    consecutive, others = boundaries_of(length, 128, spec_of())
    ends = {t + 1 for t in (*consecutive, *others)}
    blocks = [*range(40, 130, 8), 40, 50, 60, 100, 125, 144, 160, 192, 200, 224, 240, 250, 256, 288, 320, 384, 400, 512]
    for block in set(blocks) - {88, 104, 136}:  # of 11 and 13
        assert any(end % block == 0 for end in ends), block
    own = spec_of(kind="moba", block_size=37, top_k=74)
    assert any((t + 1) % 37 == 0 and t > 37 for t in boundaries_of(length, 74, own)[1])


def test_small_copies_keep_the_attention_and_try_k_both_ways() -> None:
    model = {"d_model": 64, "n_heads": 8, "n_kv_heads": 2}
    found = small_copies(spec_of(256, model=model, kind="dsa", top_k=16, indexer=INDEXER), CPU)
    assert [(copy.length, copy.attention.n_selected(copy.length)) for copy in found] == [(32, 2), (32, 16)]
    assert [(copy.model.n_heads, copy.model.kv_heads) for copy in found] == [(4, 1), (4, 1)]
    (copy,) = small_copies(spec_of(256), CPU)
    assert (copy.length, copy.attention.n_selected(32), copy.model.n_layers) == (32, 16, 1)
    assert [c.length for c in small_copies(spec_of(5), CPU)] == [5]


def test_an_attention_that_takes_no_short_window_is_tried_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_40(self: Any, x_BTD: Tensor, context: AttentionContext) -> Tensor:
        assert x_BTD.shape[1] == 40, "windows of 40 tokens"
        return 0 * x_BTD

    plant(monkeypatch, only_40)
    assert audit(spec_of(40)).copies == ("L=40 k=20 fp64",)  # narrow, but as long as the run
    gate.forget()
    monkeypatch.setattr(small_models, "LENGTHS", (32,))
    found = audit(spec_of(40))
    assert not found.leak and found.copies == () and found.boundaries == 39


def test_without_fp64_small_copies_are_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, lambda self, x, context: 0 * (x @ torch.ones(x.shape[-1], 1)))
    assert audit(spec_of()).copies == ("L=32 k=16 fp32",)
    plant(monkeypatch, lambda self, x, context: 1e-3 * peek(x) @ torch.eye(x.shape[-1]))
    gate.forget()
    found = audit(spec_of()).first
    assert found is not None and found.leak.position == 0


def test_in_long_windows_no_loss_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take two thirds of the time; the small copies and the rehearsal do ask, and train mode in short ones."""
    asked: dict[int, set[bool]] = {}
    honest = DSA.forward

    def forward(self: DSA, x_BTD: Tensor, context: AttentionContext) -> AttentionOutput:
        output = honest(self, x_BTD, context)
        asked.setdefault(x_BTD.shape[1], set()).add(output.aux_loss is not None)
        return output

    monkeypatch.setattr(DSA, "forward", forward)
    monkeypatch.setattr(gate, "LOSSES", 199)
    audit(spec_of(200))
    assert len(asked) > 1
    assert asked.pop(200) == {False}
    assert all(True in found for found in asked.values()), asked
    audit(spec_of(199))
    assert asked[199] == {True, False}


def test_windows_that_do_not_fit_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(self: Any, x_BTD: Tensor, context: AttentionContext) -> Tensor:
        if x_BTD.shape[1] > 160:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.1 * every_seventh(x_BTD)

    plant(monkeypatch, hungry)
    found = audit(spec_of(300))
    assert found.length == 150 and found.first is not None and found.first.leak.position == 3
