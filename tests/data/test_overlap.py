"""Held-out text that stands in training text too, counted and called what it is."""

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from dsabench.audit.experiment_checks import _overlap
from dsabench.data import TokenData, TokenSplit, cut, prepare
from dsabench.data import overlap as overlap_module
from dsabench.data.overlap import DUPLICATED, RUN, Overlap, run_hashes, training_overlap
from dsabench.spec.data_settings import DataSpec

Folder = Callable[..., DataSpec]

N_TEXTS, LINES = 40, 25


def lines(number: int) -> list[str]:
    """Lines of words that no other text has in this order."""
    random = np.random.default_rng(number)
    words = ["".join(random.choice(list("abcdefgh"), 5)) for _ in range(9 * LINES)]
    return [" ".join(words[i : i + 9]) for i in range(0, len(words), 9)]


COPIES: dict[str, Callable[[list[str]], str]] = {
    "the line ends of Windows": "\r\n".join,
    "of an old Macintosh": "\r".join,
    "lines apart": "\n\n".join,
    "spaces at the ends": "  \n".join,
    "indented": lambda text: "".join(f"\t{line}\n" for line in text),
    "wrapped elsewhere": lambda text: " ".join(text).replace(" ", "\n", 40),
}


def measured(data: TokenData) -> Overlap:
    found = training_overlap(data, cut(data, 128).evaluation("val").tokens)
    assert found is not None
    return found


def copied(folder: Folder, share: float, make: Callable[[list[str]], str], tokenizer: str) -> TokenData:
    """Texts, of which a share has a copy in the corpus, written otherwise; half of it held out."""
    files = {f"{i:03}.txt": "\n".join(lines(i)) for i in range(N_TEXTS)}
    copies = {f"copy/{i:03}.txt": make(lines(i)) for i in range(round(share * N_TEXTS))}
    fields = {"tokenizer": tokenizer, "vocab_size": 600, "val_share": 0.2, "split_seed": 3}
    return prepare(folder(files | copies, name=f"corpus{tokenizer}", **fields))


def by_hand(data: TokenData) -> float:
    """The share of the held-out text whose twin is in training, by the names of the files."""
    train = {name.removeprefix("copy/") for name in data.train.names}
    sizes = np.diff(data.val.offsets)
    twins = np.array([name.removeprefix("copy/") in train for name in data.val.names])
    return float(sizes[twins].sum() / sizes.sum())


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_copies_in_other_white_space_are_found(
    folder: Folder, make: Callable[[list[str]], str], tokenizer: str
) -> None:
    data = copied(folder, 1.0, make, tokenizer)
    found, wanted = measured(data), by_hand(data)
    assert wanted > DUPLICATED
    assert found.run_share == pytest.approx(wanted, abs=0.05)
    check = _overlap(data, cut(data, 128).evaluation("val").tokens)
    assert check.result == "FAIL"
    said = f"{found.run_share:.0%} duplicated: the validation loss measures memory; take copies out of the text."
    assert check.detail.startswith(said)


def test_text_of_its_own_is_not_called_duplicated(folder: Folder) -> None:
    data = copied(folder, 0.0, "\r\n".join, "bytes")
    assert measured(data).run_share < 0.01
    assert _overlap(data, cut(data, 128).evaluation("val").tokens).result == "info"


def test_an_overlapping_split_is_called_what_it_is(folder: Folder) -> None:
    data = prepare(folder({f"{i}.txt": "\n".join(lines(i)) for i in range(3)}, split="overlapping"))
    check = _overlap(data, cut(data, 128).evaluation("val", 2000).tokens)
    assert (check.result, "make data.split documents" in check.detail) == ("FAIL", True)


@pytest.mark.parametrize("chunk", [1, 7, 31, 100, 10**6])
def test_where_the_training_text_is_cut_for_looking_makes_no_difference(
    folder: Folder, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"a.txt": "\n".join(lines(1)[:6]), "b.txt": "\r\n".join(lines(1)[:6]), "c.txt": "\n".join(lines(2)[:6])}
    data = prepare(folder(files, val_share=0.4))
    before = measured(data)
    monkeypatch.setattr(overlap_module, "_CHUNK", chunk)
    assert measured(data) == before


def test_runs_are_counted_as_by_hand(folder: Folder) -> None:
    """Every run of bytes that are no white space, looked up as text."""
    shared = " ".join(lines(7)[:5])
    files = {f"{i}.txt": f"{' '.join(lines(i)[:9])}\n{shared * (i % 2)}\n{' '.join(lines(i)[9:18])}" for i in range(8)}
    data = prepare(folder(files, val_share=0.4))
    windows_NT = cut(data, 100).evaluation("val").tokens

    def runs(ids: np.ndarray) -> list[str]:
        text = "".join(chr(one) for one in ids if not chr(one).isspace())
        return [text[i : i + RUN] for i in range(len(text) - RUN + 1)]

    offsets = data.train.offsets
    training = {run for a, b in itertools.pairwise(offsets) for run in runs(data.train.tokens[a:b])}
    held_out = [[run in training for run in runs(window_T)] for window_T in windows_NT]
    found = training_overlap(data, windows_NT)
    assert found == Overlap(sum(map(any, held_out)), len(windows_NT), sum(map(sum, held_out)), sum(map(len, held_out)))
    assert 0 < found.runs < found.n_runs


def test_windows_shorter_than_a_run_have_none(folder: Folder) -> None:
    data = prepare(folder({f"{i}.txt": "\n".join(lines(i)) for i in range(3)}))
    assert training_overlap(data, cut(data, 16).evaluation("val").tokens) is None


def test_overlap_against_a_plain_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """At every border: of documents, of windows, of the parts that are looked at, one place too short."""
    monkeypatch.setattr(overlap_module, "_CHUNK", 64)
    random = np.random.default_rng(0)
    documents = [random.integers(0, 50, n).astype(np.uint16) for n in (RUN - 1, 70, 200, 500, RUN + 1)]
    offsets = np.cumsum([0, *map(len, documents)])
    train = TokenSplit(np.concatenate(documents), offsets, ["a"] * len(documents))
    letters = SimpleNamespace(train=train, vocab_size=51, end_of_document=50, decode=lambda ids: chr(200 + ids[0]))
    data = cast(TokenData, letters)
    windows_NT = random.integers(0, 50, (6, 130)).astype(np.int32)
    windows_NT[1, 10 : 10 + RUN] = documents[3][300 : 300 + RUN]  # one run
    windows_NT[2, : RUN + 18] = documents[2][200 - RUN - 18 : 200]  # 19 runs, the last at the document's end
    windows_NT[3, 5 : 5 + RUN] = train.tokens[offsets[3] - 10 : offsets[3] - 10 + RUN]  # across two documents: none
    windows_NT[4, : RUN - 1] = documents[3][: RUN - 1]  # too short: none
    windows_NT[5, 130 - RUN :] = documents[4][:RUN]
    found = training_overlap(data, windows_NT)
    assert found is not None
    runs = {bytes(d[i : i + RUN].astype(np.int32)) for d in documents for i in range(len(d) - RUN + 1)}
    plain = np.array([[bytes(w[i : i + RUN]) in runs for i in range(131 - RUN)] for w in windows_NT])
    assert (found.windows, found.n_windows, found.runs, found.n_runs) == (3, 6, int(plain.sum()), plain.size)
    assert plain.sum() == 1 + 19 + 1
    assert training_overlap(data, windows_NT[:, : RUN - 1]) is None
    assert len(np.unique(run_hashes(windows_NT.ravel()))) == windows_NT.size - RUN + 1
