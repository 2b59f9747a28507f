"""The overlapping split: one stream, a window at every token, each drawn for one side."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsabench.data import Windows, fingerprint, prepare
from dsabench.data.overlap import training_overlap
from dsabench.data.stream import Overlapping
from dsabench.errors import DataError
from dsabench.spec.data_settings import DataSpec
from dsabench.spec.identity import run_id
from dsabench.spec.run import validate

Folder = Callable[..., DataSpec]
Texts = Callable[..., dict[str, str]]


@given(st.integers(3, 400), st.integers(1, 60), st.floats(0.01, 0.99), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_every_window_is_on_one_side(n_tokens: int, length: int, share: float, seed: int) -> None:
    split = Overlapping(share, seed)
    if n_tokens - length < 2:
        with pytest.raises(DataError, match=rf"length {length} with data.split = overlapping needs a text of at least"):
            split.draw(n_tokens, length)
        return
    drawn = split.draw(n_tokens, length)
    together = np.concatenate([drawn["train"], drawn["val"]])
    assert np.array_equal(np.sort(together), np.arange(n_tokens - length)), "stride 1, none twice, none left out"
    n_val = min(max(1, round(share * (n_tokens - length))), n_tokens - length - 1)
    assert len(drawn["val"]) == n_val
    for side, starts in split.draw(n_tokens, length).items():
        assert np.array_equal(starts, drawn[side]), "the same each time"


def test_another_seed_draws_other_windows() -> None:
    one, other = (set(Overlapping(0.2, seed).draw(1000, 8)["val"].tolist()) for seed in (0, 1))
    assert len(one & other) < 0.5 * len(one)


def test_the_stream_is_all_documents_end_to_end(folder: Folder, texts: Texts) -> None:
    files = texts(9)
    data = prepare(folder(files, split="overlapping"))
    stream = "".join(text + "<|endoftext|>" for _, text in sorted(files.items()))
    assert data.decode(data.train.tokens) == stream
    assert data.train is data.val
    assert data.train.offsets.tolist() == [0, len(data.train.tokens)]
    assert np.bincount(data.train.tokens)[data.end_of_document] == 9
    assert data.train.names[0].startswith("9 documents as one stream")
    again = prepare(folder(files, split="overlapping"))
    assert np.array_equal(again.train.tokens, data.train.tokens)


def test_max_tokens_cuts_the_stream_before_windows_are_drawn(folder: Folder, texts: Texts) -> None:
    data = prepare(folder(texts(9), split="overlapping", max_tokens=700))
    assert len(data.train.tokens) == 700
    windows = Windows(data, 16)
    assert windows.n_starts + len(windows.evaluation_starts("val")) == 700 - 16
    assert any(note.startswith("700 tokens from") for note in data.notes)


@pytest.mark.parametrize("length", [8, 33])
def test_batches_hold_training_windows_alone(folder: Folder, texts: Texts, length: int) -> None:
    windows = Windows(prepare(folder(texts(6), split="overlapping", max_tokens=900)), length)
    held_out = set(windows.evaluation_starts("val").tolist())
    drawn: set[int] = set()
    for step in range(60):
        starts = windows.batch_starts(seed=step % 3, step=step, batch_size=32)
        assert not held_out & set(starts.tolist())
        drawn |= set(starts.tolist())
        assert np.array_equal(windows.gather(starts), windows.gather(starts, "val")), "of one stream"
    assert len(drawn) > 0.8 * windows.n_starts
    assert not held_out & set(windows.evaluation_starts("train").tolist())
    assert len(held_out) == round(0.1 * (900 - length))
    assert windows.evaluation("val").tokens.shape == (len(held_out), length + 1)
    assert len(windows.evaluation("val", 20 * length).tokens) == 20


def test_held_out_windows_stand_in_the_training_text(folder: Folder, texts: Texts) -> None:
    files = texts(20, words=400)
    found = {}
    for split in ("documents", "overlapping"):
        data = prepare(folder(files, split=split))
        overlap = training_overlap(data, Windows(data, 128).evaluation("val").tokens)
        assert overlap is not None
        found[split] = overlap.window_share
    assert found["overlapping"] == 1.0
    assert found["documents"] < 0.1


def test_it_is_said_that_memory_is_measured(folder: Folder, texts: Texts) -> None:
    (first, *_) = prepare(folder(texts(4), split="overlapping")).notes
    assert first.startswith("WARNING: data.split = overlapping: validation windows overlap training windows")
    assert "memory, not generalisation" in first
    assert not any("overlap" in note for note in prepare(folder(texts(4))).notes)
    described = DataSpec.model_fields["split"].description
    assert described is not None and "measures memory, NOT generalisation" in described


def test_the_split_is_part_of_the_identity_and_of_the_cache(folder: Folder, texts: Texts) -> None:
    files = texts(8)
    honest = folder(files, tokenizer="bpe", vocab_size=300)
    leaky = honest.model_copy(update={"split": "overlapping"})
    for fields in ({"tokenizer": "bytes"}, {}):  # also where no tokenizer tells them apart
        ids, tokens = [], []
        for data in (honest.model_copy(update=fields), leaky.model_copy(update=fields)):
            spec = validate({"data": data.model_dump()})
            ids.append(run_id(spec, fingerprint(data)))
            tokens.append(prepare(data).train.tokens)
        assert ids[0] != ids[1]
        assert len(tokens[0]) < len(tokens[1])
    assert fingerprint(honest)["corpus"] == fingerprint(leaky)["corpus"]
    assert fingerprint(honest)["tokenizer"] != fingerprint(leaky)["tokenizer"], "it is trained on all documents"
    assert prepare(honest).notes == prepare(honest).notes, "and the honest one is still there"


def test_a_single_document_needs_no_cutting_up(folder: Folder, texts: Texts) -> None:
    (name, text), *_ = texts(1, words=300).items()
    data = prepare(folder({name: text}, split="overlapping"))
    assert data.decode(data.train.tokens[:-1]) == text


@pytest.mark.parametrize(
    ("values", "known"),
    [
        ({"attention": {"kind": "dense"}}, "dense-L256-s42-dd3ef256"),
        (
            {
                "length": 128,
                "attention": {"kind": "dsa", "top_k_ratio": 0.25, "indexer": {"norm_eps": 1e-5}},
                "model": {"dropout": 0.1},
                "data": {"max_tokens": 50000, "split": "documents"},
            },
            "dsa-L128-s42-3e59cc10",
        ),
    ],
)
def test_specs_from_before_these_fields_keep_their_identity(values: dict[str, object], known: str) -> None:
    assert run_id(validate(values), {"corpus": "c0", "tokenizer": "t0"}) == known
