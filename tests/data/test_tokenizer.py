"""Tokenizers: lossless, trained on training text alone, exact in bytes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache as once
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from dsabench.data import fingerprint, prepare
from dsabench.data.split import draw
from dsabench.data.tokenizer import END_OF_DOCUMENT, Bytes, Subwords, load_file, train_bpe
from dsabench.errors import DataError
from dsabench.spec.data_settings import DataSpec

Folder = Callable[..., DataSpec]
Texts = Callable[..., dict[str, str]]

TEXT = "the quick brown fox jumps over the lazy dog \u20ac\u20ac\u20ac " * 20
ANY_TEXT = (
    st.text(max_size=60)
    | st.text(alphabet="<|endoftext|> \n\u20ac\U0001f600e\u0301", max_size=60)
    | st.just(END_OF_DOCUMENT)
)


@once
def bpe() -> Subwords:
    return train_bpe([TEXT], 300)


@pytest.mark.parametrize("make", [bpe, Bytes])
def test_any_text_comes_back_and_its_bytes_are_counted(make: Callable[[], Subwords | Bytes]) -> None:
    tokenizer = make()

    @settings(deadline=None, max_examples=150)
    @given(st.lists(ANY_TEXT, min_size=1, max_size=4))
    def check(texts: list[str]) -> None:
        for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
            assert tokenizer.decode(ids.tolist()) == text
            assert tokenizer.token_bytes_V[ids].sum() == len(text.encode())
            assert tokenizer.end_of_document not in ids, "text that spells the end of a document is text"
            assert ids.max(initial=0) < tokenizer.vocab_size

    check()
    assert tokenizer.token_bytes_V[tokenizer.end_of_document] == 0
    assert len(tokenizer.token_bytes_V) == tokenizer.vocab_size


def test_the_vocabulary_is_as_large_as_asked_and_the_same_each_time() -> None:
    first, again = train_bpe([TEXT], 280), train_bpe([TEXT], 280)
    assert first.vocab_size == 280
    assert first.end_of_document == 0
    assert first.encode([TEXT])[0].tolist() == again.encode([TEXT])[0].tolist()


def test_decode_shows_ends_of_documents() -> None:
    for tokenizer in (bpe(), Bytes()):
        ids = [*tokenizer.encode(["one"])[0], tokenizer.end_of_document, *tokenizer.encode(["two"])[0]]
        assert tokenizer.decode(ids) == f"one{END_OF_DOCUMENT}two"


def test_the_tokenizer_never_sees_held_out_text(folder: Folder, texts: Texts) -> None:
    plain = folder(texts(10), tokenizer="bpe", vocab_size=400, val_share=0.3)
    split = draw(plain, lambda message: None)
    train, held_out = ({split.name(int(i)) for i in side} for side in (split.train, split.val))

    def tokens_of(word: str, where: set[str]) -> int:
        """Ids that the word takes when the documents in `where` are full of it."""
        files = {name: text + f"{word} " * 100 * (name in where) for name, text in texts(10).items()}
        data = prepare(folder(files, name=f"{word}{len(where)}", tokenizer="bpe", vocab_size=400, val_share=0.3))
        assert set(data.val.names) == held_out
        return len(data.encode(word))

    assert tokens_of("QZXJKVWY", train) < 4
    assert tokens_of("QZXJKVWY", held_out) == 8


def test_too_little_text_for_the_vocabulary_is_told(folder: Folder, texts: Texts) -> None:
    data = prepare(folder(texts(4, words=20), tokenizer="bpe", vocab_size=5000))
    assert data.vocab_size < 5000
    assert any(f"{data.vocab_size:,} ids, not 5,000" in note for note in data.notes)
    assert len(data.unigram_nats_V) == len(data.token_bytes_V) == data.vocab_size


def write_file(path: Path, ends: list[str], *, add: bool = True) -> Path:
    """A byte-level tokenizer.json with truncation and padding set, as files of the hub may have."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ends if add else []
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<pad>", *special], initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator([TEXT], trainer)
    model.add_tokens([AddedToken("\u20acuro", normalized=False)])
    model.enable_truncation(5)
    model.enable_padding(pad_token="<pad>", length=50)
    model.save(str(path))
    return path


@pytest.mark.parametrize("end", ["</s>", END_OF_DOCUMENT, "<|end_of_text|>", None])
def test_a_file_brings_its_own_vocabulary_and_end(
    folder: Folder, texts: Texts, tmp_path: Path, end: str | None
) -> None:
    path = write_file(tmp_path / "t.json", [end] if end else [])
    data = prepare(folder(texts(6), tokenizer=str(path)))
    known = Tokenizer.from_file(str(path)).get_vocab()
    assert data.end_of_document == (known[end] if end else len(known))
    assert data.vocab_size == len(known) + (end is None)
    text = "the \u20acuro <pad> fox </s> \U0001f600" + END_OF_DOCUMENT
    ids = data.encode(text)
    assert data.decode(ids) == text
    assert data.end_of_document not in ids
    assert data.token_bytes_V[ids].sum() == len(text.encode())
    assert not any("bits per byte" in note for note in data.notes)


def test_a_tokenizer_that_loses_text_is_told(folder: Folder, texts: Texts, tmp_path: Path) -> None:
    model = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.save(str(tmp_path / "t.json"))
    data = prepare(folder({"a.txt": "a ab abb", "b.txt": "ab ab", "c.txt": "zz"}, tokenizer=str(tmp_path / "t.json")))
    assert data.token_bytes_V.tolist() == [5, 1, 1, 0]
    assert any("does not keep every byte" in note for note in data.notes)


def test_sentencepiece_strings_are_counted_as_the_text_they_stand_for(tmp_path: Path) -> None:
    vocabulary = {"\u2581the": 0, "<0x0A>": 1, "\u20ac": 2, "</s>": 3}
    model = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    model.save(str(tmp_path / "t.json"))
    tokenizer = load_file(tmp_path / "t.json")
    assert tokenizer.token_bytes_V.tolist() == [4, 1, 3, 0]


def test_missing_and_damaged_files_are_named(folder: Folder, texts: Texts, tmp_path: Path) -> None:
    whole = write_file(tmp_path / "tokenizer.json", []).read_bytes()
    (tmp_path / "cut.json").write_bytes(whole[:500])
    (tmp_path / "other.json").write_text(json.dumps({"model": 3}))
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
    for name in ("cut.json", "other.json", "binary.json"):
        with pytest.raises(DataError, match=rf"{name}: not a .*tokenizer\.json"):
            prepare(folder(texts(3), tokenizer=str(tmp_path / name)))
    with pytest.raises(DataError, match=r"'bpee': no such file; accepted: bpe, bytes, or the path"):
        fingerprint(folder(texts(3), tokenizer="bpee"))
    with pytest.raises(DataError, match=r"did you mean '.*tokenizer\.json'"):
        fingerprint(folder(texts(3), tokenizer=str(tmp_path)))


def test_a_file_is_known_by_its_content(folder: Folder, texts: Texts, tmp_path: Path) -> None:
    path = write_file(tmp_path / "t.json", [])
    copy = tmp_path / "copy.json"
    copy.write_bytes(path.read_bytes())
    data = folder(texts(3), tokenizer=str(path))
    same = fingerprint(data.model_copy(update={"tokenizer": str(copy)}))
    assert same == fingerprint(data)
    write_file(path, ["</s>"])
    assert fingerprint(data)["tokenizer"] != same["tokenizer"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_after_encoding_is_quiet_and_works() -> None:
    code = (
        "import os, warnings; warnings.simplefilter('ignore')\n"
        "from dsabench.data.tokenizer import train_bpe\n"
        "tokenizer = train_bpe(['some text '] * 50, 270)\n"
        "tokenizer.encode(['some text'] * 50)\n"
        "if os.fork() == 0:\n"
        "    os._exit(len(tokenizer.encode(['text'] * 50)))\n"
        "print(os.waitstatus_to_exitcode(os.wait()[1]), 'TOKENIZERS_PARALLELISM' in os.environ)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert (done.stdout.strip(), done.stderr) == ("50 False", "")


def test_ids_wider_than_sixteen_bits_are_stored_wider(folder: Folder, texts: Texts, tmp_path: Path) -> None:
    vocabulary = {f"w{i}": i for i in range(70_000)} | {"[UNK]": 70_000}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model.save(str(tmp_path / "t.json"))
    data = prepare(folder({f"{i}.txt": f"w69999 w{i} w2" for i in range(3)}, tokenizer=str(tmp_path / "t.json")))
    assert data.train.tokens.dtype == np.uint32
    assert data.vocab_size == 70_002
    assert {69_999, 2, 70_001} <= set(data.train.tokens.tolist())
