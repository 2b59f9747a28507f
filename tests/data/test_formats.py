"""Formats that several programs write in several ways: told apart by what is in them, or refused by name."""

import itertools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from dsabench.data import fingerprint, prepare
from dsabench.data.sources.documents import Ids
from dsabench.data.sources.readers import read_parquet
from dsabench.data.sources.token_file import layout, read_bin
from dsabench.errors import DataError
from dsabench.spec.data_settings import DataSpec

Folder = Callable[..., DataSpec]


def documents(path: Path, ids: Ids) -> list[list[int]]:
    return [[int(one) for part in document.parts for one in part] for document in read_bin(path, ids)]


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_the_width_of_ids_is_seen_from_them(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Counted by hand: what lies between ends of documents, whatever the width it was written in."""
    vocab_size = data.draw(st.sampled_from([257, 5000, 50_257, 65_536, 128_256]))
    n = data.draw(st.integers(8, 300))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    end = vocab_size - 1
    ids = random.integers(1, vocab_size, n)
    dtype = data.draw(st.sampled_from(["<u4", "<i4", "<u8", "<i8"] + ["<u2"] * (vocab_size <= 2**16)))
    path = tmp_path_factory.mktemp("ids") / "a.bin"
    path.write_bytes(ids.astype(dtype).tobytes())
    stops = [-1, *np.flatnonzero(ids == end).tolist(), n]
    wanted = [ids[a + 1 : b].tolist() for a, b in itertools.pairwise(stops)]
    if stops[-2] == n - 1:
        wanted.pop()
    assert documents(path, Ids(vocab_size, end)) == wanted
    assert np.dtype(layout(path, Ids(vocab_size, end)).dtype).itemsize == np.dtype(dtype).itemsize


def test_the_same_ids_are_the_same_corpus_in_every_width(folder: Folder) -> None:
    ids = np.random.default_rng(1).integers(1, 256, 4000)
    ids[::200] = 256
    specs = [folder({"a.bin": ids.astype(dtype).tobytes()}, name=dtype[1:]) for dtype in ("<u2", "<u4", "<i8")]
    header = np.zeros(256, "<i4")
    for magic, dtype in ((20240520, "<u2"), (20240801, "<u4")):
        header[:3] = magic, 1, len(ids)
        specs.append(folder({"a.bin": header.tobytes() + ids.astype(dtype).tobytes()}, name=f"llm{dtype[1:]}"))
    prepared = [prepare(spec) for spec in specs]
    assert len({fingerprint(spec)["corpus"] for spec in specs}) == 1
    assert all(np.array_equal(one.train.tokens, prepared[0].train.tokens) for one in prepared)
    # The first of the ends stands before any document, and the last document is given one.
    assert len(prepared[0].train.tokens) + len(prepared[0].val.tokens) == 4000 - 1 + 1
    widths = [next(note for note in one.notes if ".bin files" in note).split()[4] for one in prepared]
    assert widths == ["uint16", "uint32", "uint64", "uint16", "uint32"]


def megatron(folder: Path, documents: list[list[int]], code: int, dtype: str) -> Path:
    """As Megatron-LM writes it: .bin, and .idx with magic, version, type, counts, sizes, places, first sequences."""
    flat = np.array([one for document in documents for one in document], dtype)
    sizes = np.array([len(document) for document in documents], "<i4")
    places = np.append(0, np.cumsum(sizes, dtype=np.int64))[:-1] * np.dtype(dtype).itemsize
    firsts = np.arange(len(documents) + 1, dtype="<i8")
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(sizes), len(firsts))
    (folder / "m.bin").write_bytes(flat.tobytes())
    (folder / "m.idx").write_bytes(head + sizes.tobytes() + places.astype("<i8").tobytes() + firsts.tobytes())
    return folder / "m.bin"


@settings(deadline=None, max_examples=40)
@given(
    wanted=st.lists(st.lists(st.integers(0, 200), min_size=1, max_size=9), min_size=1, max_size=9),
    kind=st.sampled_from([(8, "<u2"), (4, "<i4"), (1, "<u1"), (5, "<i8")]),
    ended=st.booleans(),
)
def test_an_index_of_megatron_tells_documents_and_width(
    tmp_path_factory: pytest.TempPathFactory, wanted: list[list[int]], kind: tuple[int, str], ended: bool
) -> None:
    end = 255
    path = megatron(tmp_path_factory.mktemp("m"), [[*one, *[end] * ended] for one in wanted], *kind)
    assert documents(path, Ids(257, end)) == wanted


REFUSED: list[tuple[str, bytes, list[str]]] = [
    ("npy", b"\x93NUMPY\x01\x00" + bytes(200), ["a.bin", "NumPy array", "tofile"]),
    ("zip", b"PK\x03\x04" + bytes(100), ["a.bin", "zip"]),
    ("gzip", b"\x1f\x8b\x08\x00" + bytes(100), ["a.bin", "gzip"]),
    ("big-endian", np.arange(1, 200, dtype=">u2").tobytes(), ["a.bin", "little-endian", "token 0 is 256"]),
    ("bytes", b"plain text, a byte an id", ["a.bin", "uint16", "token 0 is 27760"]),
    ("negative", np.array([1, 2, -1, 3], "<i4").tobytes(), ["a.bin", "65535"]),
    ("float", np.array([1, 2, 3], "<f4").tobytes(), ["a.bin", "ids 0 to"]),
    ("short header", np.array([20240520, 1, 9, 0], "<i4").tobytes(), ["a.bin", "header", "9 uint16 ids"]),
]


@pytest.mark.parametrize(("content", "told"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_are_no_ids_of_the_tokenizer_is_refused(folder: Folder, content: bytes, told: list[str]) -> None:
    spec = folder({"a.bin": content})
    if told[-1] == "token 0 is 256":
        spec = folder(
            {"a.bin": content}, tokenizer=str(small_vocabulary(Path(spec.source.removeprefix("path:")).parent))
        )
    with pytest.raises(DataError) as error:
        prepare(spec)
    assert all(words in str(error.value) for words in told), str(error.value)


def small_vocabulary(folder: Path, size: int = 200) -> Path:
    model = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model.save(str(folder / "t.json"))
    return folder / "t.json"


def test_sixteen_bits_do_not_hold_a_large_vocabulary(folder: Folder, tmp_path: Path) -> None:
    tokenizer = str(small_vocabulary(tmp_path, 70_000))
    ids = np.random.default_rng(0).integers(0, 65_536, 1000)
    with pytest.raises(DataError, match=r"a\.bin: not uint32 ids .* 0 to 70000, and uint16 cannot hold these"):
        prepare(folder({"a.bin": ids.astype("<u2").tobytes()}, tokenizer=tokenizer))
    data = prepare(folder({"a.bin": ids.astype("<u4").tobytes()}, name="wide", tokenizer=tokenizer))
    assert sorted([*data.train.tokens, *data.val.tokens])[: len(ids)] == sorted(ids)


def test_a_broken_index_is_named(tmp_path: Path) -> None:
    path = megatron(tmp_path, [[1, 2], [3]], 8, "<u2")
    index = path.with_suffix(".idx")
    whole = index.read_bytes()
    for damaged in (whole[:20], whole[:17] + b"\x63" + whole[18:], whole[:-30]):
        index.write_bytes(damaged)
        with pytest.raises(DataError, match=r"m\.idx"):
            documents(path, Ids(257, 256))
    index.write_bytes(whole)
    path.write_bytes(b"\x01\x00")
    with pytest.raises(DataError, match=r"m\.idx tells of 3 uint16 ids, and the file has 2 bytes"):
        documents(path, Ids(257, 256))


STRINGS: dict[str, Any] = {
    "string": pa.string(),
    "large_string": pa.large_string(),
    "string_view": pa.string_view(),
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
    "large dictionary": pa.dictionary(pa.int32(), pa.large_string()),
    "binary": pa.binary(),
    "large_binary": pa.large_binary(),
    "binary_view": pa.binary_view(),
}


@pytest.mark.parametrize("kind", STRINGS)
def test_text_of_every_type_is_read(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    @settings(deadline=None, max_examples=20)
    @given(
        st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=12),
        st.integers(1, 4),
    )
    def check(texts: list[str | None], rows: int) -> None:
        path = tmp_path_factory.mktemp("p") / "a.parquet"
        values: list[Any] = [one and one.encode() for one in texts] if "binary" in kind else list(texts)
        # "text.more" and the like: a name that begins as the wanted one does.
        columns = {"text.more": pa.array(["other"] * len(texts)), "text": pa.array(values, STRINGS[kind])}
        pq.write_table(pa.table(columns), path, row_group_size=rows)
        found = ["".join(map(str, one.parts)) for one in read_parquet(path, "text")]
        assert found == [one or "" for one in texts]

    check()


def test_bytes_that_are_no_text_are_named_with_their_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array([b"good", None, b"x\xff"], pa.binary())}), path)
    with pytest.raises(DataError, match=r"a\.parquet:3: column 'text' is not UTF-8: byte 0xff at byte 1 of the value"):
        list(read_parquet(path, "text"))


@pytest.mark.parametrize("kind", [pa.int64(), pa.list_(pa.string()), pa.struct({"text": pa.string()}), pa.bool_()])
def test_columns_that_hold_no_text_are_refused(tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array([None], kind)}), path)
    with pytest.raises(DataError, match=r"column 'text' is .*, not a string column"):
        list(read_parquet(path, "text"))


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"]), path)
    with pytest.raises(DataError, match="2 columns 'text'"):
        list(read_parquet(path, "text"))
