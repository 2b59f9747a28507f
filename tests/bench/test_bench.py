"""What the bench does with implementations that are right, wrong, broken or too large."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
import torch
from torch import Tensor

from dsabench.bench.cases import Case, Dense, Window, dense_cases, window_mask
from dsabench.bench.check import expected
from dsabench.bench.document import Cell, Document, Settings, settings
from dsabench.bench.implementations import all_cases
from dsabench.bench.inputs import check_inputs, random_inputs
from dsabench.bench.measure import bench
from dsabench.bench.roofline import Layer, pairs
from dsabench.bench.sparse_cases import Masked
from dsabench.engine.device import Execution
from dsabench.errors import SpecError

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "lengths": [16, 24], "heads": 4, "kv_heads": 2, "head_dim": 8, "top_k": 5, "indexer_heads": 2, "indexer_dim": 8,
    "dtype": "fp32", "repeats": 2,
}  # fmt: skip


class Planted(Masked):
    """DSA by `masked`, with a fault."""

    name = "dsa-planted"


class TooLarge(Planted):
    def forward(self) -> tuple[Tensor, ...]:
        if self.leaves[0].shape[1] == 24:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. GPU 0 has none. Try less.")
        return super().forward()


class Broken(Planted):
    def backward(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        raise RuntimeError("no such instruction\nand a long trace")


class WrongGradient(Planted):
    def backward(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        gradients = super().backward(outputs)
        return (*gradients[:4], 1.01 * gradients[4], *gradients[5:])


class NotANumber(Planted):
    def forward(self) -> tuple[Tensor, ...]:
        out, loss = super().forward()
        return out * torch.where(torch.arange(out.shape[1]) == 7, torch.nan, 1.0)[:, None, None], loss


class WrongWhenLong(Planted):
    """As a kernel whose offsets overflow: right on the small input and at L = 16."""

    def forward(self) -> tuple[Tensor, ...]:
        out, loss = super().forward()
        if out.shape[1] == 24:
            out = torch.cat([out[:, :-1], out[:, -1:] * 1.5], dim=1)
        return out, loss


class NotANumberWhenLong(Planted):
    """In a gradient that no chosen query has."""

    def backward(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        gradients = super().backward(outputs)
        if outputs[0].shape[1] == 24:
            gradients[1][0, 3] = torch.nan
        return gradients


class Huge(Planted):
    def scratch_bytes(self, length: int) -> float:
        return 1e18 if length == 24 else 0.0


def planted(execution: Execution, kind: type[Planted]) -> tuple[Document, list[Cell]]:
    """The document of a bench with a dense implementation and this one, and the latter's cells."""

    def cases(s: Settings, device: torch.device) -> list[Case]:
        return [dense_cases(s, device)[0], kind(s, device, "sparse")]

    document = bench(settings(**SMALL), execution, cases=cases)
    assert all(cell.status == "timed" for cell in document.cells if cell.implementation == "dense-flash")
    return document, [cell for cell in document.cells if cell.implementation == "dsa-planted"]


def test_out_of_memory_is_a_cell_and_the_rest_goes_on(execution: Execution) -> None:
    _, (short, long) = planted(execution, TooLarge)
    assert short.status == "timed"
    assert (long.status, long.ms, long.speed_up) == ("out of memory", None, None)
    assert long.reason == "OutOfMemoryError: CUDA out of memory. Tried to allocate 9 GiB"


def test_on_a_cpu_what_would_take_all_memory_is_not_begun(execution: Execution) -> None:
    _, (short, long) = planted(execution, Huge)
    assert short.status == "timed"
    assert long.status == "out of memory"
    assert "not begun" in (long.reason or "")


def test_an_error_is_a_cell_with_its_first_line(execution: Execution) -> None:
    _, cells = planted(execution, Broken)
    assert [(cell.status, cell.reason, cell.ms) for cell in cells] == [
        ("failed", "RuntimeError: no such instruction", None)
    ] * 2


def test_a_device_that_is_gone_ends_the_timing_and_not_the_document(
    execution: Execution, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an illegal address: from then on every call raises."""
    calls: list[int] = []

    def synchronize(self: Execution) -> None:
        calls.append(1)
        if len(calls) > 3:  # after both checks and the first cell
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    monkeypatch.setattr(Execution, "synchronize", synchronize)
    document = bench(settings(**{**SMALL, "only": ["dense-flash", "dense-math"]}), execution)
    cells = [(cell.implementation, cell.length, cell.status) for cell in document.cells]
    assert cells[0] == ("dense-flash", 16, "timed")
    assert {status for _, _, status in cells[2:]} == {"failed"}
    assert len(cells) == 6
    assert "illegal memory access" in (document.cells[-1].reason or "")


@pytest.mark.parametrize(("kind", "what"), [(WrongGradient, "d k_index"), (NotANumber, "out")])
def test_what_is_wrong_is_never_timed(execution: Execution, kind: type[Planted], what: str) -> None:
    document, cells = planted(execution, kind)
    check = next(one for one in document.checks if one.implementation == "dsa-planted")
    assert (check.ok, check.worst) == (False, what)
    for cell in cells:
        assert (cell.status, cell.ms, cell.speed_up, cell.tflops_per_second) == ("WRONG", None, None, None)
        assert f"{what} is off by" in (cell.reason or "")


def test_what_is_wrong_at_a_timed_length_only_is_found_there(execution: Execution) -> None:
    document, (short, long) = planted(execution, WrongWhenLong)
    assert all(check.ok for check in document.checks)
    assert short.status == "timed"
    assert (long.status, long.ms) == ("WRONG", None)
    assert "out of query 23 is off by 5.0e-01" in (long.reason or "")
    _, (short, long) = planted(execution, NotANumberWhenLong)
    assert (short.status, long.status, long.reason) == ("timed", "WRONG", "d k is not finite everywhere")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_all_that_runs_on_a_cpu_is_right_and_has_every_number(execution: Execution, dtype: str) -> None:
    document = bench(
        settings(
            **{**SMALL, "dtype": dtype, "stages": ["sparse", "dense"], "only": ["dense", "dsa-masked", "dsa-reference"]}
        ),
        execution,
    )
    assert all(check.ok for check in document.checks), document.checks
    timed = [cell for cell in document.cells if cell.status == "timed"]
    assert {(cell.implementation, cell.stage) for cell in timed} == {
        ("dense-flash", "sparse"), ("dense-flash-gqa", "sparse"), ("dense-math", "sparse"), ("dsa-masked", "sparse"),
        ("dsa-reference", "sparse"), ("dsa-masked", "dense"), ("dsa-reference", "dense"),
    }  # fmt: skip
    for cell in timed:
        assert cell.ms is not None and cell.ms_p20 is not None and cell.ms_p80 is not None
        assert cell.ms_p20 <= cell.ms <= cell.ms_p80
        assert cell.repeats == 2
        assert cell.tflops_per_second == pytest.approx(cell.flops / cell.ms / 1e9)
        floor = max(cell.flops / 1e11, cell.bytes / 1e10)
        assert cell.roofline_share == pytest.approx(floor / cell.ms * 1e3)
        assert cell.roofline_bound == ("flops" if floor == cell.flops / 1e11 else "bytes")
    jsonschema.validate(document.model_dump(mode="json"), Document.model_json_schema(mode="serialization"))
    assert Document.model_validate_json(document.model_dump_json()) == document


def test_the_costs_are_those_of_the_formulas() -> None:
    s = settings(**{**SMALL, "batch": 3})
    layer, n = Layer(s, 24), 3 * pairs(24, 5)
    assert n == 3 * sum(min(t + 1, 5) for t in range(24))
    every = 3 * 24 * 25 / 2
    assert layer.dense().flops == 14 * every * 4 * 8
    assert layer.window().flops == 14 * n * 4 * 8
    assert layer.dsa("sparse").flops == 14 * n * 32 + 2 * every * 16 + 2 * n * 32 + 6 * n * 16
    assert layer.dsa("dense").flops == 14 * every * 32 + 2 * every * 16 + 2 * every * 32 + 6 * every * 16
    x = random_inputs(s, 24, CPU)
    q, k = x.q_BTHD.nbytes, x.k_BSGD.nbytes
    assert layer.dense().bytes == (2 * q + 2 * k) + (4 * q + 4 * k)
    gathered = sum(cost.gathered for cost in layer.sparse_attention())
    assert gathered == n * 2 * 8 * (8 + 8 + 16)  # K and V, fp32, twice; dK and dV, read and written


def test_random_inputs_give_every_key_the_same_chance() -> None:
    """The hard case: the k kept of a query's keys overlap its neighbour's no more than chance."""
    s = settings(**{**SMALL, "lengths": [256], "top_k": 32})
    x = random_inputs(s, 256, CPU)
    dots = torch.einsum("btji,bsi->btjs", x.q_BTJI, x.k_BSI).relu()
    keep = torch.zeros(256, 256)
    keep.scatter_(1, torch.einsum("btj,btjs->bts", x.w_BTJ, dots)[0].topk(32).indices, 1.0)
    shared = float((keep[1:] * keep[:-1]).sum(1).mean())
    assert 3.0 < shared < 7.0  # 32 x 32 / 256 = 4; norms of keys differ, which raises it a little


@pytest.mark.parametrize("length", [100, 256, 300, 1000])
@pytest.mark.parametrize("window", [1, 128, 129, 200, 2000])
def test_the_window_s_block_mask_is_flex_attention_s_own(length: int, window: int) -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    mine = window_mask(length, window, CPU)
    theirs = create_block_mask(lambda b, h, t, s: (s <= t) & (t - s < window), 1, 1, length, length, "cpu")
    for names in (("kv_num_blocks", "kv_indices"), ("full_kv_num_blocks", "full_kv_indices")):
        counts, expected = getattr(mine, names[0]), getattr(theirs, names[0])
        assert torch.equal(counts, expected)
        for row, n in enumerate(counts[0, 0].tolist()):
            found, wanted = (sorted(getattr(mask, names[1])[0, 0, row, :n].tolist()) for mask in (mine, theirs))
            assert found == wanted
    assert mine.shape == theirs.shape


@pytest.mark.filterwarnings("ignore")  # uncompiled on purpose: a CPU compiles for half a minute, and has no backward
def test_the_window_attends_to_what_its_check_expects() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    s = settings(**{**SMALL, "lengths": [150], "top_k": 20})
    x = check_inputs(s, 150, CPU)
    case = Window(s, CPU)
    case.setup(x)
    q, k, v = (leaf.detach() for leaf in case.leaves)
    out_BHTD = flex_attention(q, k, v, block_mask=case.mask, enable_gqa=True)
    assert isinstance(out_BHTD, Tensor)
    torch.testing.assert_close(out_BHTD.transpose(1, 2).double(), expected(case, s, x)["out"], rtol=1e-4, atol=1e-5)


def test_names_choose_implementations_and_their_families(execution: Execution) -> None:
    document = bench(settings(**{**SMALL, "lengths": [8], "only": ["dense-flash", "dsa-masked"]}), execution)
    assert [cell.implementation for cell in document.cells] == ["dense-flash", "dense-flash-gqa", "dsa-masked"]
    with pytest.raises(SpecError, match="--only dens: there is no such implementation; there are dense-flash, "):
        bench(settings(**{**SMALL, "only": ["dens"]}), execution)


def test_only_what_shares_kv_heads_has_a_variant_that_does() -> None:
    s = settings(**{**SMALL, "kv_heads": 4})
    assert [case.name for case in all_cases(s, CPU) if isinstance(case, Dense)] == [
        "dense-flash", "dense-cudnn", "dense-efficient", "dense-math",
    ]  # fmt: skip
