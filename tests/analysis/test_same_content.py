"""Corpora and tokenizers wherever they lie: pairs and labels go by content, and a path only tells contents apart."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import synthetic
from hypothesis import given, settings
from hypothesis import strategies as st

from dsabench.analysis.compare import compare
from dsabench.analysis.pairing import find_pairs
from dsabench.analysis.results_table import experiment_table
from dsabench.analysis.scope import look_at
from dsabench.analysis.variants import label_variants
from dsabench.spec.run import validate

_PATHS = st.sampled_from(["path:A", "path:B", "path:/somewhere/A", "path:../A", "path:with space", "sotu", "hf:a/b"])
_FILES = st.sampled_from(["bpe", "t.json", "/a/t.json", "../t.json", "tokenizer = 1.json"])
_DIGESTS = st.sampled_from(["aaaaaaaaaa", "bbbbbbbbbb", "cccccccccc"])


def row(seed: int, kind: str, source: str, corpus: str | None, file: str, tokenizer: str | None) -> dict[str, object]:
    return {
        "run_id": f"{kind}-{seed}",
        "status": "done",
        "attention": kind,
        "attention.kind": kind,
        "length": 64,
        "seed": seed,
        "val_loss": 4.0,
        "data.source": source,
        "data.tokenizer": file,
        "fingerprint.corpus": corpus,
        "fingerprint.tokenizer": tokenizer,
    }


def frame(rows: list[dict[str, object]]) -> pd.DataFrame:
    return pd.DataFrame(rows).convert_dtypes()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(_PATHS, _DIGESTS, _FILES, _DIGESTS), min_size=1, max_size=8))
def test_runs_are_of_one_setting_exactly_when_their_content_is_the_same(data: list[tuple[str, str, str, str]]) -> None:
    labelled = label_variants(frame([row(i, "dense", *values) for i, values in enumerate(data)]))
    for i, (_, corpus, _, tokenizer) in enumerate(data):
        for j, (_, other_corpus, _, other_tokenizer) in enumerate(data):
            same = (corpus, tokenizer) == (other_corpus, other_tokenizer)
            assert (labelled["setting"][i] == labelled["setting"][j]) == same, (data[i], data[j])
            assert (labelled["variant"][i] == labelled["variant"][j]) == same


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(_PATHS, _PATHS, _FILES, _FILES), min_size=1, max_size=5))
def test_pairs_are_found_across_copies(places: list[tuple[str, str, str, str]]) -> None:
    rows = []
    for seed, (ours, theirs, file, other_file) in enumerate(places):
        rows += [row(seed, "dense", ours, "a" * 10, file, "t"), row(seed, "dsa", theirs, "a" * 10, other_file, "t")]
    labelled = label_variants(frame(rows))
    assert set(labelled["setting"]) == {""}
    assert len(find_pairs(labelled, "dense").frame) == len(places)


def test_a_path_tells_contents_apart_and_a_digest_only_where_no_path_does() -> None:
    moved = [
        row(1, "dense", "path:/here/A", "aaaaaaaaaa", "bpe", "t"),
        row(2, "dense", "path:A", "aaaaaaaaaa", "bpe", "t"),
    ]
    other = row(3, "dense", "path:B", "bbbbbbbbbb", "bpe", "u")
    assert list(label_variants(frame([*moved, other]))["setting"])[:2] == ["source=path:A"] * 2
    changed = row(3, "dense", "path:A", "bbbbbbbbbb", "bpe", "t")
    named = list(label_variants(frame([*moved, changed]))["setting"])
    assert named == ["corpus=aaaaaaaa", "corpus=aaaaaaaa", "corpus=bbbbbbbb"]


def test_without_digests_paths_are_what_is_known() -> None:
    rows = [row(i, "dense", source, None, "bpe", None) for i, source in enumerate(("path:A", "path:B"))]
    assert list(label_variants(frame(rows))["setting"]) == ["source=path:A", "source=path:B"]


@pytest.mark.parametrize("names", [("path:A", "path:B"), ("path:A", "path:/else/where/A"), ("sotu", "path:texts")])
def test_a_sweep_of_two_halves_on_a_corpus_and_its_copy_is_one_comparison(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    store = tmp_path / "runs"
    for seed in range(6):
        for kind in ("dense", "dsa"):
            data = {"source": names[seed % 2], "tokenizer": ("t.json", "/else/where/t.json")[seed % 2]}
            spec = validate({"length": 64, "seed": seed, "attention": {"kind": kind}, "data": data})
            synthetic.finished(store, spec, 4.4 + 0.001 * seed, evaluations=1)
    found = compare(look_at(store, everything=True))
    assert [len(table.rows) for table in found.tables] == [1]
    assert found.rows[0].difference.n == 6
    assert list(experiment_table(look_at(store, everything=True).runs)["n"]) == [6, 6]
