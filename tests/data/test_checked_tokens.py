"""Token files that are checked block by block: what is noticed, and how a run goes on."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsabench.data import PackedWindows, TokenData, Windows, prepare, token_folder, validation_window
from dsabench.data.checked_tokens import BLOCK_BYTES, CheckedTokens, crc_of_blocks
from dsabench.data.overlap import training_overlap
from dsabench.data.tokenizer import Bytes
from dsabench.errors import DataError
from dsabench.spec.data_settings import DataSpec

Folder = Callable[..., DataSpec]
Texts = Callable[..., dict[str, str]]


class NoticedError(Exception):
    pass


def refuse() -> Any:
    raise NoticedError


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:  # in place, as a disk does
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ (1 << place % 8)]))


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_reading_is_refused_exactly_where_it_touches_a_damaged_block(dtype: str, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 5 * BLOCK_BYTES), label="ids")
    ids = np.random.default_rng(n).integers(0, 2**16, n).astype(dtype)
    crc_K = crc_of_blocks(ids)
    damaged = set(data.draw(st.lists(st.integers(0, n - 1), max_size=2), label="damaged ids"))
    bad = ids.copy()
    for place in damaged:
        bad[place] ^= 1 << data.draw(st.integers(0, 15))
    tokens = CheckedTokens(bad, crc_K, refuse, "tokens")
    places = st.integers(-n, n - 1)
    edges = st.none() | st.integers(-2 * n, 2 * n)
    index: Any
    for _ in range(3):
        index = data.draw(
            st.one_of(
                places,
                st.builds(slice, edges, edges, st.sampled_from([None, 1, 3, 2000, -1, -7])),
                st.lists(places, max_size=40).map(lambda some: np.array(some, np.int64)),
                st.tuples(st.integers(0, n - 1), st.integers(1, 300)).map(
                    lambda window: (window[0] + np.arange(3)[:, None] + np.arange(window[1])) % n
                ),
                st.just(slice(None)),
                st.just(np.arange(n) % 2 == 0),
            ),
            label="index",
        )
        if isinstance(index, slice) and index.step not in (None, 1):  # blocks between the first and the last count too
            some = np.sort(np.atleast_1d(np.arange(n)[index]))
            touched = np.arange(some[0], some[-1] + 1) if len(some) else some
        else:
            touched = np.atleast_1d(np.arange(n)[index])
        size = BLOCK_BYTES // ids.itemsize
        if {place // size for place in damaged} & set((touched.ravel() // size).tolist()):
            with pytest.raises(NoticedError):
                tokens[index]
        else:
            assert np.array_equal(tokens[index], ids[index])
    assert len(tokens) == n and tokens.dtype == dtype
    if not damaged:
        assert np.array_equal(np.array(tokens), ids)
        assert (tokens == ids).all() and int(np.max(tokens)) == ids.max()


def test_a_file_above_the_bound_of_whole_checks(tmp_path: Path) -> None:
    """Sparse: it takes no room. Every flip at 300 places is noticed where it is read, and nowhere else."""
    path, n = tmp_path / "train.bin", (token_folder.VERIFY_BYTES + 10_000_000) // 2
    with path.open("wb") as file:
        file.truncate(2 * n)
    mapped = np.memmap(path, dtype="<u2", mode="r")
    crc_K = crc_of_blocks(mapped)
    size = BLOCK_BYTES // 2
    for place in np.random.default_rng(0).integers(0, 2 * n, 300).tolist():
        flip(path, place)
        tokens = CheckedTokens(mapped, crc_K, refuse, "tokens")
        token = place // 2
        with pytest.raises(NoticedError):
            tokens[np.array([[(token + 300) % n, token]])]
        elsewhere = (token + np.arange(size, 3 * size, 100)) % n
        assert not tokens[elsewhere[elsewhere // size != token // size]].any()
        flip(path, place)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as a large one."""
    monkeypatch.setattr(token_folder, "VERIFY_BYTES", 0)


READERS: dict[str, Callable[[TokenData], Any]] = {
    "batches": lambda data: [Windows(data, 64).batch(1, step, 4, 99).tokens for step in range(200)],
    "evaluation": lambda data: [Windows(data, 64).evaluation(side).tokens for side in ("train", "val")],
    "packed batches": lambda data: [PackedWindows(data, 3000).batch(1, step, 4, 99).tokens for step in range(30)],
    "packed evaluation": lambda data: [PackedWindows(data, 3000).evaluation(side).tokens for side in ("train", "val")],
    "a document": lambda data: [validation_window(data, 900)[0]],
    "overlap": lambda data: [training_overlap(data, Windows(data, 64).evaluation("val").tokens)],
    "decoding": lambda data: [data.decode(data.train.tokens), data.decode(data.val.tokens)],
}


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_damage_after_the_opening_changes_nothing_that_is_read(
    folder: Folder, texts: Texts, cache: Path, read: Callable[[TokenData], Any]
) -> None:
    spec, told = folder(texts(12, words=900), val_share=0.3), list[str]()
    data = prepare(spec)
    right = read(data)
    again = prepare(spec, progress=told.append)
    assert isinstance(again.train.tokens, CheckedTokens)
    for path in cache.glob("tokens/*/*.bin"):
        for block in range(path.stat().st_size // BLOCK_BYTES + 1):
            flip(path, min(block * BLOCK_BYTES + 777, path.stat().st_size - 1))
    told.clear()
    found = read(again)
    assert all(np.array_equal(a, b) for a, b in zip(found, right, strict=True))
    (line,) = told
    assert line.startswith("encoding 12 documents (") and line.endswith("anew: the tokens in the cache are damaged")


@pytest.mark.usefixtures("large")
def test_two_openings_are_mended_once(folder: Folder, texts: Texts, cache: Path) -> None:
    spec, told = folder(texts(12, words=900)), list[str]()
    right = np.array(prepare(spec).train.tokens)
    one, other = (prepare(spec, progress=told.append) for _ in range(2))
    told.clear()
    flip(next(cache.glob("tokens/*/train.bin")), 5000)
    assert np.array_equal(one.train.tokens[:], right)
    assert np.array_equal(other.train.tokens[:], right)
    assert len(told) == 1


RACE = (
    "import sys, time; from pathlib import Path; import numpy as np\n"
    "from dsabench.data import prepare, token_folder; from dsabench.spec.data_settings import DataSpec\n"
    "token_folder.VERIFY_BYTES = 0\n"
    "data = prepare(DataSpec(source=sys.argv[1], tokenizer='bytes'))\n"
    "data = prepare(DataSpec(source=sys.argv[1], tokenizer='bytes'), progress=lambda line: print(line, flush=True))\n"
    "print('ready', flush=True); sys.stdin.readline()\n"
    "print(int(np.asarray(data.train.tokens).astype('int64').sum()))\n"
)


@pytest.mark.usefixtures("large")
def test_processes_that_find_the_same_damage_mend_it_once(folder: Folder, texts: Texts, cache: Path) -> None:
    spec = folder(texts(12, words=3000))
    right = int(np.asarray(prepare(spec).train.tokens).astype(np.int64).sum())
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen([sys.executable, "-c", RACE, spec.source], **pipes) for _ in range(3)]
    for process in running:
        while process.stdout.readline() != "ready\n":  # type: ignore[union-attr]
            assert process.poll() is None
    flip(next(cache.glob("tokens/*/train.bin")), 5000)
    for process in running:
        process.stdin.write("\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
    told = [process.communicate(timeout=60)[0].splitlines() for process in running]
    assert [lines[-1] for lines in told] == [str(right)] * 3
    assert sum(line.startswith("encoding") for lines in told for line in lines) == 1


@pytest.mark.usefixtures("large")
def test_without_its_text_a_damaged_block_is_an_error_that_says_so(
    folder: Folder, texts: Texts, cache: Path, tmp_path: Path
) -> None:
    data = prepare(folder(texts(6, words=900)))
    (tmp_path / "corpus").rename(tmp_path / "away")
    flip(next(cache.glob("tokens/*/train.bin")), 5000)
    with pytest.raises(
        DataError, match=r"tokens in the cache are damaged, and cannot be encoded anew now: .*\.txt: cannot be read"
    ):
        Windows(data, 64).evaluation("train")
    (tmp_path / "away").rename(tmp_path / "corpus")
    assert Windows(data, 64).evaluation("train").tokens.any()


@pytest.mark.usefixtures("large")
def test_other_tokens_than_before_are_refused(
    folder: Folder, texts: Texts, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = folder(texts(6, words=900))
    data = prepare(spec)
    flip(next(cache.glob("tokens/*/train.bin")), 5000)
    before = Bytes.encode
    monkeypatch.setattr(Bytes, "encode", lambda self, texts: [ids[::-1] for ids in before(self, texts)])
    with pytest.raises(DataError, match=r"train\.bin: block 1 of \d+ is damaged, .* has other tokens than before"):
        Windows(data, 64).evaluation("train")


@pytest.mark.usefixtures("large")
def test_a_disk_that_damages_all_it_keeps_is_an_error(
    folder: Folder, texts: Texts, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = prepare(folder(texts(6, words=900)))
    finish = token_folder.finish

    def failing(entry: Path, *arguments: Any) -> None:
        finish(entry, *arguments)
        flip(entry / "train.bin", 5000)

    monkeypatch.setattr(token_folder, "finish", failing)
    flip(next(cache.glob("tokens/*/train.bin")), 5000)
    with pytest.raises(DataError, match=r"made anew, and is damaged again in block 1: .*DSABENCH_CACHE"):
        Windows(data, 64).evaluation("train")
