"""What neighbouring queries share, against sets; and a bench of a run, layer by layer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from shell import Shell

from dsabench.attention.dsa import reference
from dsabench.bench import shared_keys
from dsabench.bench.document import settings
from dsabench.bench.inputs import check_inputs
from dsabench.bench.shared_keys import keys_over_k, selection


@examples(max_examples=60, deadline=None)
@given(
    n_batch=st.integers(1, 3), length=st.integers(2, 40), k=st.integers(1, 12), queries=st.integers(2, 8),
    pairs=st.integers(1, 400), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_unions_are_those_of_sets(n_batch: int, length: int, k: int, queries: int, pairs: int, seed: int) -> None:
    queries = min(queries, length)
    scores_BTS = torch.randn(n_batch, length, length, generator=torch.Generator().manual_seed(seed))
    allowed = reference.allowed_keys(length, None, scores_BTS.device)
    selected_BTK = reference.select_top_k(scores_BTS, allowed, k)
    rows = [[{int(s) for s in row if s >= 0} for row in batch] for batch in selected_BTK]
    groups = [batch[t : t + queries] for batch in rows for t in range(0, length - queries + 1, queries)]
    united = sum(len(set().union(*group)) for group in groups) / len(groups)
    each = sum(len(row) for group in groups for row in group) / (queries * len(groups))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_keys, "_PAIRS", pairs)  # slabs
        assert keys_over_k(selected_BTK, queries) == pytest.approx(united / each)


@pytest.mark.parametrize("pairs", [1, 700, 1 << 22])
def test_a_selection_in_slabs_is_the_whole_one(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    s = settings(lengths=[33], heads=2, head_dim=8, indexer_heads=2, indexer_dim=8, dtype="fp32", batch=2)
    x = check_inputs(s, 33, torch.device("cpu"))
    scores = reference.index_scores(x.q_BTJI, x.k_BSI, x.w_BTJ)
    whole = reference.select_top_k(scores, reference.allowed_keys(33, None, scores.device), 6)
    monkeypatch.setattr(shared_keys, "_PAIRS", pairs)
    assert torch.equal(selection(x, 6).sort(-1).values, whole.sort(-1).values)


def test_of_a_run_every_layer_is_timed_beside_random_selections(shell: Shell, corpus: Path) -> None:
    words = [
        "train", "--config", "quick", "--device", "cpu", "--quiet", "--length", "16", "--attention", "dsa", "--set",
        f"data.source=path:{corpus}", "--set", "model.d_model=32", "--set", "model.n_heads=4", "--set",
        "model.d_ff=16", "--set", "model.n_layers=3", "--set", "train.tokens_per_step=64", "--set", "train.steps=2",
        "--set", "data.vocab_size=300", "--set", "data.val_share=0.25", "--set", "attention.top_k=6",
    ]  # fmt: skip
    assert shell(*words)[0] == 0
    bench = [
        "bench",
        "--device",
        "cpu",
        "--quiet",
        "--repeats",
        "1",
        "--only",
        "dense-math",
        "dsa-masked",
        "--run",
        "dsa",
    ]
    code, out, err = shell(*bench)
    assert code == 0, err
    document = json.loads((shell.folder / "results/bench.json").read_text())
    assert document["settings"]["lengths"] == [16], "the run's own"
    cells = [(cell["implementation"], cell["layer"], cell["status"]) for cell in document["cells"]]
    assert cells == [("dense-math", None, "timed"), *(("dsa-masked", layer, "timed") for layer in (None, 0, 1, 2))]
    unions = {(one["layer"], one["queries"]): one["keys_over_k"] for one in document["unions"]}
    assert set(unions) == {(layer, queries) for layer in (None, 0, 1, 2) for queries in (2, 4, 8, 16)}
    assert all(1 <= value <= queries for (_, queries), value in unions.items())
    lines = [line.split() for line in out.splitlines()]
    for name in ("random", "0", "1", "2"):
        layer = None if name == "random" else int(name)
        shown = [f"{unions[layer, queries]:.2f}" for queries in (2, 4, 8, 16)]
        assert any(line[-4:] == shown and name in line for line in lines), out
    assert not any("extrapolated" in note for note in document["notes"])
    assert "dsa-masked, layer 2" in out
    more = ["--methods", "dsa-triton-single"]
    code, out, err = shell(*bench, *more, "--layer", "1", "--lengths", "8", "40", "--stage", "both")
    assert code == 0, err
    document = json.loads((shell.folder / "results/bench.json").read_text())
    trained = [(cell["stage"], cell["length"]) for cell in document["cells"] if cell["layer"] is not None]
    assert trained == [("sparse", 8), ("sparse", 40)] and {one["layer"] for one in document["unions"]} == {None, 1}
    assert any(line.startswith("skipped: dsa-triton-single: ") for line in out.splitlines()), "once, without lengths"
    (said,) = [note for note in document["notes"] if "extrapolated" in note]
    assert said.startswith("L = 40: beyond the 16 tokens")
