"""Damage to the cache: every flipped bit is noticed or changes nothing that is read; what is damaged is made anew."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsabench.data import TokenData, checked_file, prepare, scan, stored_tokenizer, token_folder, tokenizer_by_digest
from dsabench.data.checked_file import UnusableError
from dsabench.errors import DataError
from dsabench.spec.data_settings import DataSpec

Folder = Callable[..., DataSpec]
Texts = Callable[..., dict[str, str]]


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a moment ago count as settled, so that their scans are kept."""
    monkeypatch.setattr(scan, "_SETTLED_NS", -(10**12))


def flips(path: Path, most: int = 10**9) -> Iterator[str]:
    """Flip one bit at every byte of a file in turn, or at `most` places of it, another of the eight bits each time."""
    whole = path.read_bytes()
    places = np.unique(np.linspace(0, len(whole) - 1, min(most, len(whole))).astype(int)).tolist()
    with path.open("r+b", buffering=0) as file:
        for place in places:
            bit = 1 << (place + place // 8) % 8
            file.seek(place)
            file.write(bytes([whole[place] ^ bit]))
            yield f"{path.name}: bit {bit:#x} of byte {place}"
            file.seek(place)
            file.write(whole[place : place + 1])
    assert path.read_bytes() == whole


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    with path.open("r+b") as file:  # in place, as a disk does
        file.write(content)


def equal(a: Any, b: Any) -> bool:
    """Equal in all that the fields of two records hold."""
    if dataclasses.is_dataclass(a):
        return all(equal(getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(a))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return bool(a == b)


def frozen(data: TokenData) -> tuple[bytes, ...]:
    sides = (data.train, data.val)
    arrays = [np.asarray(array) for side in sides for array in (side.tokens, side.offsets)]
    return (*(array.tobytes() for array in arrays), data.unigram_nats_V.tobytes(), data.token_bytes_V.tobytes())


def the(cache: Path, pattern: str) -> Path:
    (path,) = cache.glob(pattern)
    return path


def test_every_flip_in_a_tokenizer_or_its_digest_is_noticed(folder: Folder, texts: Texts, cache: Path) -> None:
    data = folder(texts(3, words=40), tokenizer="bpe", vocab_size=260)
    prepare(data)
    path = the(cache, "tokenizers/*.json")
    before = stored_tokenizer._cached(path)[0].content()
    silent, n = [], 0
    for file in (path, the(cache, "tokenizers/*.json.blake2b")):
        for place in flips(file):
            n += 1
            try:
                if stored_tokenizer._cached(path)[0].content() != before:
                    silent.append(place)
            except UnusableError:
                pass
    assert n > 2500
    assert not silent


def opener(cache: Path, n_train: int, n_val: int) -> Callable[[], token_folder.Entry]:
    """What opens the stored tokens as they are now."""
    entry = the(cache, "tokens/*/meta.json").parent
    meta = json.loads((entry / "meta.json").read_text())
    places = np.arange(n_train), np.arange(n_val)
    return lambda: token_folder.load(entry, meta["key"], meta["tokenizer"], *places, refuse)


def refuse(side: str) -> Any:
    raise DataError("noticed")


@pytest.mark.parametrize(
    ("name", "large", "most"),
    [
        *[(name, True, 10**9) for name in ("meta.json", "arrays.npz")],
        *[(name, False, 250) for name in ("meta.json", "arrays.npz")],
        *[(name, large, 250) for name in ("train.bin", "val.bin") for large in (False, True)],
    ],
)
def test_every_flip_in_stored_tokens_is_noticed(
    folder: Folder, texts: Texts, cache: Path, name: str, large: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_folder, "VERIFY_BYTES", 0 if large else 2**26)
    prepare(folder(texts(20, words=300), val_share=0.3, max_tokens=10_000))
    load = opener(cache, 14, 6)
    before = load()
    assert len(before.notes) == 1
    kept = dataclasses.replace(before, tokens={side: np.array(ids) for side, ids in before.tokens.items()})
    silent, n = [], 0
    for place in flips(the(cache, f"tokens/*/{name}"), most):
        n += 1
        try:
            entry = load()
            read = dataclasses.replace(entry, tokens={side: np.asarray(ids) for side, ids in entry.tokens.items()})
            if not equal(read, kept):
                silent.append(place)
        except UnusableError:
            pass
        except DataError as error:
            assert large and name.endswith(".bin") and str(error) == "noticed"  # at the first use
    assert n >= 250
    assert not silent


def test_every_flip_in_a_scan_is_noticed_or_changes_nothing(folder: Folder, texts: Texts, cache: Path) -> None:
    prepare(folder(texts(3)))
    path = the(cache, "scans/*.npz")
    before = scan._load(path)
    silent, noticed = [], 0
    for place in flips(path):
        try:
            if not equal(scan._load(path), before):
                silent.append(place)
        except UnusableError:
            noticed += 1
    assert noticed > 900
    assert not silent


DAMAGE: dict[str, tuple[str, str]] = {
    "tokenizer": ("tokenizers/*.json", "training the tokenizer .* anew: the one in the cache is damaged"),
    "digest of it": ("tokenizers/*.json.blake2b", "training the tokenizer .* anew: the one in the cache is damaged"),
    "meta": ("tokens/*/meta.json", "encoding 6 documents .* anew: the tokens in the cache are damaged"),
    "arrays": ("tokens/*/arrays.npz", "encoding 6 documents .* anew: the tokens in the cache are damaged"),
    "train": ("tokens/*/train.bin", "encoding 6 documents .* anew: the tokens in the cache are damaged"),
    "val": ("tokens/*/val.bin", "encoding 6 documents .* anew: the tokens in the cache are damaged"),
    "scan": ("scans/*.npz", "reading 6 files .* anew: their digests in the cache are damaged"),
}


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(("pattern", "line"), DAMAGE.values(), ids=DAMAGE)
def test_what_is_damaged_is_made_anew_and_said_once(
    folder: Folder, texts: Texts, cache: Path, pattern: str, line: str, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_folder, "VERIFY_BYTES", 0 if large else 2**26)
    data, told = folder(texts(6), tokenizer="bpe", vocab_size=300), list[str]()
    first = prepare(data)
    before, ids = frozen(first), first.encode("abcde fghab")
    flip(the(cache, pattern))
    again = prepare(data, progress=told.append)
    assert frozen(again) == before
    assert np.array_equal(again.encode("abcde fghab"), ids)
    assert again.fingerprint == first.fingerprint
    assert frozen(prepare(data, progress=told.append)) == before
    (only,) = told
    assert re.match(line, only), only


def older(cache: Path) -> None:
    """Make the entries of the cache what a version before digests leaves."""
    for path in cache.glob("**/*.blake2b"):
        path.unlink()
    for path in cache.glob("tokens/*/meta.json"):
        meta = json.loads(path.read_text())
        path.write_text(json.dumps({name: meta[name] for name in ("key", "dtype", "files", "notes")}, indent=1))


def test_entries_of_an_older_version_are_made_anew_and_said_so_once(folder: Folder, texts: Texts, cache: Path) -> None:
    data, told = folder(texts(6), tokenizer="bpe", vocab_size=300), list[str]()
    before = frozen(prepare(data))
    older(cache)
    assert frozen(prepare(data, progress=told.append)) == before
    assert [line.split(" anew: ")[1] for line in told] == [
        "the one in the cache is from an older dsabench, without a digest",
        "the tokens in the cache are from an older dsabench, without a digest",
    ]
    told.clear()
    assert frozen(prepare(data, progress=told.append)) == before
    assert not told


@pytest.mark.parametrize("large", [False, True])
def test_an_older_version_reads_what_this_one_writes(
    folder: Folder, texts: Texts, cache: Path, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As versions up to 0.2 do: key, sizes and digests of the files that are listed, and four arrays."""
    monkeypatch.setattr(token_folder, "VERIFY_BYTES", 0 if large else 2**26)
    data = prepare(folder(texts(6), tokenizer="bpe", vocab_size=300))
    entry = the(cache, "tokens/*/meta.json").parent
    meta = json.loads((entry / "meta.json").read_text())
    assert entry.name == meta["key"][:32]
    for name, told in meta["files"].items():
        assert (entry / name).stat().st_size == told["size"]
        assert told["blake2b"] in ("", checked_file.of_file(entry / name))
    assert all(told["blake2b"] for name, told in meta["files"].items() if not large or name == "arrays.npz")
    with np.load(entry / "arrays.npz") as arrays:
        assert {"train", "val", "kept_train", "counts_V"} <= set(arrays)
    assert np.array_equal(np.fromfile(entry / "train.bin", meta["dtype"]), data.train.tokens)
    assert all(isinstance(note, str) for note in meta["notes"])
    content = the(cache, "tokenizers/*.json").read_text(encoding="utf-8")
    assert content.encode() == data.tokenizer.content()


def test_tokens_of_another_tokenizer_are_encoded_anew(folder: Folder, texts: Texts, cache: Path) -> None:
    data, told = folder(texts(6), tokenizer="bpe", vocab_size=300), list[str]()
    prepare(data)
    path = the(cache, "tokenizers/*.json")
    other = stored_tokenizer.train_bpe(["another text of other words"] * 9, 300)
    checked_file.write(path, other.save)  # as another version of the library might train it
    again = prepare(data, progress=told.append)
    assert told[0].endswith("anew: the tokens in the cache are those of another tokenizer")
    assert again.decode(again.train.tokens[: again.train.offsets[1] - 1]) == texts(6)[again.train.names[0]]


def test_a_damaged_tokenizer_whose_text_is_gone_is_refused_and_an_old_one_is_taken(
    folder: Folder, texts: Texts, cache: Path, tmp_path: Path
) -> None:
    data, told = folder(texts(6), tokenizer="bpe", vocab_size=300), list[str]()
    first = prepare(data)
    wanted, ids = first.fingerprint["tokenizer"], first.encode("abcde")
    (tmp_path / "corpus").rename(tmp_path / "away")
    flip(the(cache, "tokenizers/*.json"))
    with pytest.raises(
        DataError, match=r"is damaged in the cache \(.*json\), and what it was trained on cannot be read"
    ):
        tokenizer_by_digest(data, wanted, told.append)
    assert not told
    flip(the(cache, "tokenizers/*.json"))
    older(cache)
    assert np.array_equal(tokenizer_by_digest(data, wanted, told.append).encode(["abcde"])[0], ids)
    (line,) = told
    assert "from an older dsabench, without a digest" in line and "it is taken as it is" in line
