"""Tokens on disk: complete, made once, rebuilt when damaged, in bounded memory."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dsabench.data import TokenData, TokenSplit, Windows, encode, fingerprint, prepare, tokenizer_by_digest
from dsabench.data.sources import readers
from dsabench.data.tokenizer import tokenizer_digest, train_bpe
from dsabench.errors import DataError
from dsabench.spec.data_settings import DataSpec

Folder = Callable[..., DataSpec]
Texts = Callable[..., dict[str, str]]


def documents(split: TokenSplit) -> dict[str, np.ndarray]:
    return {name: split.tokens[split.offsets[i] : split.offsets[i + 1]] for i, name in enumerate(split.names)}


def frozen(data: TokenData) -> TokenData:
    """The same with its tokens in memory, where no damage to the files reaches them."""
    train, val = (dataclasses.replace(side, tokens=np.array(side.tokens)) for side in (data.train, data.val))
    return dataclasses.replace(data, train=train, val=val)


def same(a: TokenData, b: TokenData) -> bool:
    return all(
        np.array_equal(x.tokens, y.tokens) and np.array_equal(x.offsets, y.offsets) and x.names[:] == y.names[:]
        for x, y in ((a.train, b.train), (a.val, b.val))
    ) and np.array_equal(a.unigram_nats_V, b.unigram_nats_V)


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_every_document_is_there_once_and_its_bytes_add_up(folder: Folder, texts: Texts, tokenizer: str) -> None:
    files = texts(12)
    data = prepare(folder(files, tokenizer=tokenizer, vocab_size=320))
    found = documents(data.train) | documents(data.val)
    assert sorted(found) == sorted(files)
    assert len(data.train.names) + len(data.val.names) == 12
    for name, ids in found.items():
        assert ids[-1] == data.end_of_document
        assert data.decode(ids[:-1]) == files[name]
        assert data.token_bytes_V[ids].sum() == len(files[name].encode())
    for split in (data.train, data.val):
        assert isinstance(split.tokens, np.memmap)
        assert split.tokens.dtype == np.uint16
        assert split.offsets[0] == 0
        assert split.offsets[-1] == len(split.tokens)
        with pytest.raises(ValueError, match="read-only"):
            split.tokens[0] = 1
    counts = np.bincount(data.train.tokens, minlength=data.vocab_size)
    assert np.allclose(np.exp(-data.unigram_nats_V), (counts + 1) / (counts.sum() + data.vocab_size))
    assert np.exp(-data.unigram_nats_V).sum() == pytest.approx(1)


def test_a_second_call_says_nothing_and_gives_the_same(folder: Folder, texts: Texts) -> None:
    data, told = folder(texts(6), tokenizer="bpe", vocab_size=300), list[str]()
    first = prepare(data, progress=told.append)
    assert [line.split()[0] for line in told] == ["reading", "training", "encoding"]
    told.clear()
    again = prepare(data, progress=told.append)
    assert same(first, again)
    assert first.notes == again.notes
    assert [line.split()[0] for line in told] == ["reading"], "files of a moment ago are read again, nothing else"


def test_long_documents_are_encoded_in_parts_and_stay_whole(
    folder: Folder, texts: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = texts(5, words=500)
    whole = prepare(folder(files))
    monkeypatch.setattr(readers, "PART_CHARS", 100)
    monkeypatch.setattr(encode, "BATCH_CHARS", 250)
    monkeypatch.setenv("DSABENCH_CACHE", os.environ["DSABENCH_CACHE"] + "-2")
    assert same(whole, prepare(folder(files)))


def test_max_tokens_takes_whole_documents_as_drawn_and_cuts_the_last(folder: Folder, texts: Texts) -> None:
    data = folder(texts(30), val_share=0.2)
    whole = prepare(data)
    train, size = documents(whole.train), len(whole.train.tokens)
    names = None
    for most in (1, 700, size // 2 + 5, size - 1):
        limited = prepare(data.model_copy(update={"max_tokens": most}))
        kept = documents(limited.train)
        assert len(limited.train.tokens) == most
        cut = [name for name, ids in kept.items() if len(ids) < len(train[name])]
        assert len(cut) == 1
        assert all(np.array_equal(ids, train[name][: len(ids)]) for name, ids in kept.items())
        assert names is None or names <= set(kept), "a larger limit keeps what a smaller one took"
        names = set(kept)
        assert documents(limited.val).keys() == documents(whole.val).keys()
        assert any(f"{most:,} training tokens from {len(kept)} of 24" in note for note in limited.notes)
    assert same(whole, prepare(data.model_copy(update={"max_tokens": size})))


def test_what_is_tried_first_does_not_decide_what_max_tokens_takes(
    folder: Folder, texts: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = folder(texts(30), max_tokens=5000)
    first = prepare(data)
    monkeypatch.setattr(encode, "_FIRST_BYTES_PER_TOKEN", 0.01)
    monkeypatch.setenv("DSABENCH_CACHE", os.environ["DSABENCH_CACHE"] + "-2")
    assert same(first, prepare(data))


def test_a_limited_fingerprint_differs_only_where_the_documents_do(folder: Folder, texts: Texts) -> None:
    data = folder(texts(10))
    assert fingerprint(data.model_copy(update={"max_tokens": 50})) == fingerprint(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no meta": lambda entry: (entry / "meta.json").unlink(),
    "half a meta": lambda entry: (entry / "meta.json").write_text((entry / "meta.json").read_text()[:80]),
    "no tokens": lambda entry: (entry / "train.bin").unlink(),
    "short tokens": lambda entry: (entry / "val.bin").write_bytes((entry / "val.bin").read_bytes()[:-2]),
    "other tokens": lambda entry: (entry / "val.bin").write_bytes(b"\1" * len((entry / "val.bin").read_bytes())),
    "bad arrays": lambda entry: (entry / "arrays.npz").write_bytes(b"PK"),
    "a file": lambda entry: [entry.rename(entry.with_suffix(".x")), entry.write_bytes(b"")],
    "half-made before": lambda entry: entry.rename(entry.with_name(f".{entry.name}.tmp-new")),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_is_made_anew(
    folder: Folder, texts: Texts, cache: Path, damage: Callable[[Path], object]
) -> None:
    data = folder(texts(6))
    before = frozen(prepare(data))
    (entry,) = (path for path in (cache / "tokens").iterdir() if path.is_dir())
    damage(entry)
    assert same(prepare(data), before)
    assert same(prepare(data), before)
    assert not list((cache / "tokens").glob(".*")), "nothing half-made is left"


def test_a_damaged_tokenizer_is_trained_anew(folder: Folder, texts: Texts, cache: Path) -> None:
    data = folder(texts(6), tokenizer="bpe", vocab_size=300)
    before = prepare(data)
    (kept,) = (cache / "tokenizers").glob("*.json")
    kept.write_bytes(kept.read_bytes()[:100])
    assert same(prepare(data), before)


def test_a_cache_that_cannot_be_written_is_named(
    folder: Folder, texts: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DSABENCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match=r"cannot write the data cache at .*file.*DSABENCH_CACHE"):
        prepare(folder(texts(3)))


def test_a_full_disk_is_told_and_leaves_nothing(
    folder: Folder, texts: Texts, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    data = folder(texts(3))
    with monkeypatch.context() as patch:
        patch.setattr(encode.token_folder, "finish", full)
        with pytest.raises(DataError, match="No space left on device; free some space"):
            prepare(data)
    assert [path.suffix for path in (cache / "tokens").iterdir()] in ([], [".lock"])
    prepare(data)


def test_a_corpus_that_changes_while_it_is_read_is_refused(folder: Folder, texts: Texts, tmp_path: Path) -> None:
    data = folder(texts(6))
    path = tmp_path / "corpus" / "000.txt"

    def change(message: str) -> None:
        if message.startswith("encoding"):
            path.write_text("changed")

    with pytest.raises(DataError, match=r"000\.txt changed while it was read"):
        prepare(data, progress=change)
    path.unlink()
    assert "000.txt" not in {*prepare(data).train.names, *prepare(data).val.names}


PREPARE = (
    "import sys; from dsabench.data import prepare; from dsabench.spec.data_settings import DataSpec\n"
    "spec = DataSpec(source=sys.argv[1], tokenizer='bpe', vocab_size=600)\n"
    "data = prepare(spec, progress=lambda line: print(line, flush=True))\n"
    "print(int(data.train.tokens.astype('int64').sum()), len(data.val.tokens))\n"
)


def start(source: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PREPARE, source], stdout=subprocess.PIPE, text=True)


def test_processes_that_race_make_it_once_and_agree(folder: Folder, texts: Texts) -> None:
    source = folder(texts(40, words=2000)).source
    running = [start(source) for _ in range(3)]
    told = [process.communicate(timeout=60)[0].splitlines() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len({lines[-1] for lines in told}) == 1
    for stage in ("training", "encoding"):
        assert sum(line.startswith(stage) for lines in told for line in lines) == 1


def test_a_killed_process_leaves_nothing_in_the_way(folder: Folder, texts: Texts) -> None:
    source = folder(texts(40, words=2000)).source
    killed = start(source)
    assert killed.stdout is not None
    while not killed.stdout.readline().startswith("encoding"):
        pass
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    lines = start(source).communicate(timeout=60)[0].splitlines()
    assert not any("waiting" in line for line in lines)
    assert lines[-1].split()[1].isdigit()


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "BATCH_CHARS", 2**17)
    line = "a line of some length that is repeated until there is enough of it. " * 60
    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        for number in range(2500):
            file.write(json.dumps({"text": f"{number} {line}"}) + "\n")
    size = path.stat().st_size
    assert size > 10e6
    tracemalloc.start()
    try:
        data = prepare(DataSpec(source=f"path:{path}", tokenizer="bytes"))
        windows = Windows(data, 64)
        windows.gather(windows.batch_starts(0, 0, 32))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(data.train.tokens) + len(data.val.tokens) > 10e6
    assert peak < 5e6, f"peak of {peak / 1e6:.0f} MB"


def test_a_long_lone_text_is_cut_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "PIECE_CHARS", 2**18)
    monkeypatch.setattr(encode, "BATCH_CHARS", 2**17)
    path = tmp_path / "large.txt"
    path.write_text("".join(f"line {number} of a long text in one file\n" for number in range(600_000)))
    tracemalloc.start()
    try:
        data = prepare(DataSpec(source=f"path:{path}", tokenizer="bytes"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(data.train.names) + len(data.val.names) == -(-path.stat().st_size // 2**18)
    assert peak < 6e6, f"peak of {peak / 1e6:.0f} MB"


def test_a_prepared_corpus_opens_quickly(folder: Folder, texts: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    data = folder(texts(200), tokenizer="bpe", vocab_size=2000)
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 10**10)
    prepare(data)
    began = time.perf_counter()
    prepare(data)
    assert time.perf_counter() - began < 1.0  # 0.02 s when nothing else runs


def test_a_tokenizer_is_found_by_its_digest_without_its_corpus(
    folder: Folder, texts: Texts, cache: Path, tmp_path: Path
) -> None:
    spec = folder(texts(6), tokenizer="bpe", vocab_size=300)
    wanted = fingerprint(spec)["tokenizer"]
    text = "abcde: 12 "
    again = tokenizer_by_digest(spec, wanted).encode([text])[0]  # trained: nothing is in the cache yet
    assert np.array_equal(prepare(spec).encode(text), again)
    shutil.rmtree(tmp_path / "corpus")
    assert np.array_equal(tokenizer_by_digest(spec, wanted).encode([text])[0], again)
    shutil.rmtree(cache)
    with pytest.raises(
        DataError, match=r"not in the cache \(.*json\), and what it was trained on cannot be read: .*corpus"
    ):
        tokenizer_by_digest(spec, wanted)
    changed = folder(texts(6, seed=1), tokenizer="bpe", vocab_size=300)
    with pytest.raises(DataError, match="has changed since"):
        tokenizer_by_digest(changed, wanted)


def test_a_tokenizer_of_another_kind_needs_its_file_alone(folder: Folder, tmp_path: Path) -> None:
    nowhere = DataSpec(source=f"path:{tmp_path / 'nowhere'}", tokenizer="bytes")
    assert tokenizer_by_digest(nowhere, "").encode(["ab"])[0].tolist() == [97, 98]
    path = tmp_path / "tokenizer.json"
    train_bpe(["the cat and the hat"] * 3, 280).save(path)
    own = DataSpec(source=f"path:{tmp_path / 'nowhere'}", tokenizer=str(path))
    wanted = tokenizer_digest(own, b"")
    assert len(tokenizer_by_digest(own, wanted).encode(["the hat"])[0]) < 7
    train_bpe(["another text altogether"] * 3, 280).save(path)
    with pytest.raises(DataError, match=r"tokenizer.json is no longer the tokenizer"):
        tokenizer_by_digest(own, wanted)
    path.unlink()
    with pytest.raises(DataError, match=r"tokenizer.json.*no such file"):
        tokenizer_by_digest(own, wanted)
