"""Optional implementations of the bench: named, they are timed; what they need is said where it is missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from shell import Shell
from torch import Tensor

from dsabench.attention.dsa import masked, reference
from dsabench.bench import peer_cases
from dsabench.bench.cases import Case, FlexCausal
from dsabench.bench.check import check, expected, small, wrong_rows
from dsabench.bench.document import Settings, settings
from dsabench.bench.implementations import all_cases, chosen
from dsabench.bench.inputs import check_inputs, random_inputs
from dsabench.bench.measure import bench
from dsabench.bench.peer_cases import NSA, GatherGym
from dsabench.bench.sparse_cases import Single
from dsabench.engine.device import Execution
from dsabench.errors import SpecError

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "lengths": [24], "heads": 4, "kv_heads": 1, "head_dim": 8, "top_k": 5, "indexer_heads": 2, "indexer_dim": 8,
    "dtype": "fp32", "repeats": 1,
}  # fmt: skip
OPTIONAL = ["dense-flex", "dsa-triton-single", "dsa-gym", "nsa-fla"]


def names(**more: Any) -> list[str]:
    s = settings(**{**SMALL, **more})
    return [case.name for case in chosen(all_cases(s, CPU), s.only, s.methods)]


def test_optional_ones_are_timed_when_they_are_named_and_no_family_brings_them() -> None:
    assert not set(OPTIONAL) & {*names(), *names(only=["dense", "dsa", "dsa-triton"])}
    assert set(OPTIONAL) < set(names(methods=["all"]))
    assert names(only=["dense-math"], methods=["nsa-fla", "dense-flex"]) == ["dense-math", "dense-flex", "nsa-fla"]
    assert names(only=["dense-math", "dsa-gym"]) == ["dense-math", "dsa-gym"]
    with pytest.raises(SpecError, match="--methods nsa: there is no such implementation; there are dense-flex, "):
        names(methods=["nsa"])


def test_what_is_not_installed_is_one_line_and_no_failure(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_cases.importlib.util, "find_spec", lambda name: None)
    words = [
        "bench", "--device", "cpu", "--lengths", "16", "--heads", "4", "--head-dim", "8", "--top-k", "5", "--repeats",
        "1", "--only", "dense-math", "--methods", "dsa-gym", "nsa-fla",
    ]  # fmt: skip
    code, out, err = shell(*words)
    assert code == 0, err
    skipped = [line for line in out.splitlines() if line.startswith("skipped: ")]
    assert [line.split(": ")[1] for line in skipped] == ["dsa-gym", "nsa-fla"]
    assert "pip install attn-gym" in skipped[0] and "pip install fla-core" in skipped[1]


@pytest.mark.parametrize(
    ("kind", "fits", "misfits"),
    [
        (NSA, {"heads": 16, "top_k": 2048}, [{"heads": 8}, {"heads": 24}, {"top_k": 100}, {"top_k": 192}]),
        (GatherGym, {"dtype": "bf16"}, [{"kv_heads": 2}, {"dtype": "fp32"}]),
    ],
)
def test_a_peer_says_which_sizes_it_takes(
    kind: type[NSA | GatherGym], fits: dict[str, Any], misfits: list[dict[str, Any]]
) -> None:
    assert kind(settings(**{**SMALL, **fits}), CPU).unfit() is None
    for other in misfits:
        assert "takes" in (kind(settings(**{**SMALL, **fits, **other}), CPU).unfit() or "")


class InPlainPyTorch(GatherGym):
    """attention-gym's two calls, by the reference: what `dsa-gym` does with them is what is tested."""

    factor = 1.0

    def why_not(self, length: int) -> str | None:
        return None

    def forward(self) -> tuple[Tensor, ...]:
        q_BTHD, kv_BSGD = (leaf.transpose(1, 2) for leaf in self.leaves)
        keep = reference.allowed_keys(q_BTHD.shape[1], None, CPU)
        keep = masked.selection_mask(masked.index_scores(*self.index).float(), keep, self.settings.top_k)
        return (masked.attention(q_BTHD, kv_BSGD, kv_BSGD, keep)[0].transpose(1, 2) * self.factor,)


def test_keys_that_are_values_are_checked_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    s = settings(**SMALL)
    case = InPlainPyTorch(s, CPU)
    found = check(InPlainPyTorch(small(s, CPU), CPU), small(s, CPU), CPU)
    assert found.ok and found.error is not None and found.error < 1e-5, found
    x = random_inputs(s, 24, CPU)
    case.setup(x)
    outputs = case.forward()
    results = case.results(outputs, case.backward(outputs))
    assert wrong_rows(case, s, x, results) is None
    monkeypatch.setattr(InPlainPyTorch, "factor", 1.3)
    assert check(InPlainPyTorch(small(s, CPU), CPU), small(s, CPU), CPU).status == "WRONG"


def test_inputs_without_ties_have_none() -> None:
    s = settings(**{**SMALL, "lengths": [40]})
    for ties in (True, False):
        x = check_inputs(s, 40, CPU, ties)
        scores_TS = reference.index_scores(x.q_BTJI.double(), x.k_BSI.double(), x.w_BTJ.double())[0]
        assert (len(scores_TS.flatten().unique()) == scores_TS.numel()) is not ties


class Unlike(InPlainPyTorch):
    """Something else than what the reference computes."""

    unlike = "another method"
    optional = False
    factor = 7.0


class UnlikeAndBroken(Unlike):
    factor = float("nan")


@pytest.mark.parametrize(("kind", "status"), [(Unlike, "timed"), (UnlikeAndBroken, "WRONG")])
def test_another_method_is_timed_without_a_comparison_if_it_is_finite(
    execution: Execution, kind: type[Case], status: str
) -> None:
    s = settings(**SMALL)
    document = bench(s, execution, cases=lambda s, device: [kind(s, device)])  # type: ignore[call-arg]
    assert [cell.status for cell in document.cells] == [status]
    assert document.checks[0].error is None


def test_dense_flex_sees_all_keys_and_a_single_query_makes_no_union() -> None:
    s: Settings = settings(**SMALL)
    flex, x = FlexCausal(s, CPU), check_inputs(s, 24, CPU)
    assert (flex.family, flex.width(24)) == ("dense", 24)
    assert set(expected(flex, s, x)) == {"out", "d q", "d k", "d v"}
    single = Single(s, CPU, "sparse")
    single.setup(x)
    assert single._unite(torch.zeros(1, 24, 5, dtype=torch.int32)) is None
    assert "no groups" in (Single(s, CPU, "dense").why_not(24) or "")


@pytest.mark.parametrize(
    ("lengths", "top_k", "wanted"),
    [
        ([4096, 65536], 2048, (320, 48)),
        ([4096, 5000], 2048, (333, 40)),
        ([4096], 100, (333, 40)),
        ([64], 64, (320, 48)),
    ],
)
def test_the_kernels_that_are_checked_are_those_that_are_timed(
    lengths: list[int], top_k: int, wanted: tuple[int, int]
) -> None:
    """Triton compiles one for numbers that 16 divides and another for all others."""
    found = small(settings(lengths=lengths, top_k=top_k), torch.device("cuda"))
    assert (found.lengths, found.top_k) == ([wanted[0]], wanted[1])
