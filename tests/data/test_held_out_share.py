"""The share of the text that is held out, whatever the sizes of the documents."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsabench.data import fingerprint, prepare, survey
from dsabench.data.cache import digest
from dsabench.data.split import Split, draw
from dsabench.errors import DataError
from dsabench.spec.data_settings import DataSpec

Folder = Callable[..., DataSpec]


def silent(message: str) -> None:
    pass


def prose(n_bytes: int, word: str) -> str:
    """Different lines of ASCII, n_bytes in all."""
    return "".join(f"{word} {i} of some text\n" for i in range(n_bytes // 12 + 2))[: n_bytes - 1] + "\n"


def corpus(path: Path, sizes: list[int], **fields: object) -> DataSpec:
    texts = [prose(size, f"w{i}") for i, size in enumerate(sizes)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return DataSpec.model_validate({"source": f"path:{path}", "tokenizer": "bytes", **fields})


def as_before(spec: DataSpec, split: Split) -> bool:
    """Whether the split is that of the first version, by its formula: keys of Philox in order, the first held out."""
    n = len(split.scan.bytes_N)
    keys = np.random.Philox(key=np.array([spec.split_seed, 2**64 - 1], np.uint64)).random_raw(n)
    order = np.argsort(keys, kind="stable")
    n_val = min(max(1, round(spec.val_share * n)), n - 1)
    return (
        split.val.tolist() == order[:n_val].tolist()
        and split.train.tolist() == order[n_val:].tolist()
        and split.corpus_digest == digest("corpus", 1, split.scan.digest_N.tobytes())
    )


def sizes_add_up(split: Split, sizes: list[int]) -> None:
    amounts = split.amounts
    assert amounts.train_bytes + amounts.val_bytes == sum(sizes) == amounts.n_bytes
    assert amounts.train_documents == len(split.train)
    assert amounts.val_documents == len(split.val)


@pytest.mark.parametrize("readme", ["readme.md", "a.txt", "zzz/LICENSE.txt"])
def test_a_small_file_beside_the_text_changes_neither_side_much(folder: Folder, readme: str) -> None:
    text = prose(435_000, "text")
    for seed in range(4):
        spec = folder({"input.txt": text, readme: prose(1000, "about")}, split_seed=seed)
        data = prepare(spec)
        train, val = len(data.train.tokens), len(data.val.tokens)
        assert 0.05 <= val / (train + val) <= 0.2
        assert train + val == 436_000 + 21, "a byte a token, and an end for each of 20 pieces and the small file"
        cut = next(note for note in data.notes if "cut into" in note)
        assert cut.startswith("input.txt (435,000 bytes, 99.8 % of the text) was cut into 20 contiguous pieces")
        assert any(f"{train:,} tokens in " in note and f"{val:,} in " in note for note in data.notes)
        named = [note for note in data.notes if "read as data" in note]
        assert bool(named) == (readme != "a.txt")
        assert all(readme in note for note in named)


LIKE = st.lists(st.integers(1000, 2000), min_size=2, max_size=12)


@settings(deadline=None, max_examples=30)
@given(sizes=LIKE, share=st.floats(0.02, 0.98), seed=st.integers(0, 5))
def test_documents_of_like_size_are_split_as_ever(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], share: float, seed: int
) -> None:
    spec = corpus(tmp_path_factory.mktemp("like") / "a.jsonl", sizes, val_share=share, split_seed=seed)
    split = draw(spec, silent)
    sizes_add_up(split, sizes)
    assert as_before(spec, split)


@settings(deadline=None, max_examples=30)
@given(
    sizes=st.lists(st.sampled_from([2000, 5000, 20_000, 200_000]), min_size=2, max_size=9),
    share=st.sampled_from([0.05, 0.1, 0.3, 0.5, 0.9]),
    seed=st.integers(0, 5),
)
def test_no_sizes_lead_far_from_the_share(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], share: float, seed: int
) -> None:
    sizes = [size + i for i, size in enumerate(sizes)]
    spec = corpus(tmp_path_factory.mktemp("any") / "a.jsonl", sizes, val_share=share, split_seed=seed)
    split = draw(spec, silent)
    sizes_add_up(split, sizes)
    s = split.amounts.val_bytes / sum(sizes)
    if as_before(spec, split):
        by_number = min(max(1, round(share * len(sizes))), len(sizes) - 1) / len(sizes)
        low, high = min(share, by_number), max(share, by_number)
    else:
        low = high = share
        assert any("held out by size" in note for note in split.notes)
        assert split.corpus_digest != digest(
            "corpus", 1, split.scan.digest_N[np.sort([*split.train, *split.val])].tobytes()
        )
    assert low / 2 <= s <= min(2 * high, 1 - (1 - high) / 2) + 1e-9
    both = np.concatenate([split.train, split.val])
    texts = {split.name(place): "".join(map(str, one.parts)) for place, one in split.documents(both)}
    assert sum(map(len, texts.values())) == sum(sizes), "nothing is lost or doubled"


def test_the_other_split_is_another_identity_and_the_same_each_time(folder: Folder) -> None:
    even = {f"{i}.txt": prose(3000, f"w{i}") for i in range(8)}
    for i, files in enumerate((even, even | {"big.txt": prose(200_000, "big")})):
        spec = folder(files, name=f"c{i}")
        assert fingerprint(spec) == survey(spec).fingerprint == prepare(spec).fingerprint
    split = draw(spec, silent)
    assert split.corpus_digest != digest(
        "corpus", 1, split.scan.digest_N[np.sort([*split.train, *split.val])].tobytes()
    )


def test_documents_that_were_not_drawn_stay_away_from_a_cut_corpus(folder: Folder, tmp_path: Path) -> None:
    spec = corpus(tmp_path / "a.jsonl", [200_000, *(1000 + i for i in range(6))], max_documents=3)
    for seed in range(12):
        split = draw(spec.model_copy(update={"split_seed": seed}), silent)
        whole = {int(split.scan.record_N[place]) for place in (*split.train, *split.val)}
        assert len(whole) == 3
        if 1 in whole:
            assert any("a.jsonl:1 (200,000 bytes" in note for note in split.notes)
            assert {split.name(int(place)).count(":") for place in (*split.train, *split.val)} <= {1, 2}


def test_equal_and_empty_documents_beside_a_large_one_stay_dropped(folder: Folder) -> None:
    large, small = prose(100_000, "large"), prose(500, "small")
    spec = folder({"a.txt": large, "b.txt": small, "c.txt": large, "d.txt": " \n", "e.txt": small})
    split = draw(spec, silent)
    sizes_add_up(split, [100_000, 500])
    assert sum("duplicates of other documents" in note for note in split.notes) == 1


def test_what_cannot_be_split_is_refused_with_the_sizes(folder: Folder) -> None:
    spec = folder({"a.txt": "x" * 400, "b.txt": "y" * 3})
    with pytest.raises(DataError, match=r"val_share = 0\.1 of the text cannot be held out: \d+ bytes in 1 document"):
        draw(spec, silent)


def test_an_overlapping_split_is_not_cut(folder: Folder) -> None:
    data = prepare(folder({"a.txt": prose(50_000, "a"), "b.txt": prose(100, "b")}, split="overlapping"))
    assert len(data.train.tokens) == 50_102
    assert any("50,102 tokens in 2 documents, windows of it held out" in note for note in data.notes)
