"""Tokenizer files of other people: the same tokens every time, and no end of a document out of text."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from dsabench.data import fingerprint, prepare
from dsabench.data.cache import digest
from dsabench.data.tokenizer import KNOWN_ENDS, Subwords, load_file
from dsabench.errors import DataError
from dsabench.spec.data_settings import DataSpec

Folder = Callable[..., DataSpec]

LETTERS = "abcdefgh <|/>endoftxs_"
TEXT = "abcabc face bead " * 8


def bpe(**fields: Any) -> Tokenizer:
    """Merges of letters in a vocabulary of 30."""
    merges = [("a", "b"), ("ab", "c"), ("e", "a"), ("c", "e")]
    vocabulary = {letter: i for i, letter in enumerate(dict.fromkeys(LETTERS))}
    for merge in merges:
        vocabulary["".join(merge)] = len(vocabulary)
    return Tokenizer(models.BPE(vocabulary, merges, **fields))


def unigram(*more: tuple[str, float], **fields: Any) -> Tokenizer:
    pieces = [
        ("<unk>", 0.0),
        *((letter, -3.0) for letter in dict.fromkeys(LETTERS)),
        ("ab", -4.0),
        ("abc", -6.0),
        *more,
    ]
    return Tokenizer(models.Unigram(pieces, 0, False, **fields))


def random_alpha() -> Tokenizer:
    tokenizer = unigram()
    tokenizer.model.alpha, tokenizer.model.nbest_size = 0.1, 5
    return tokenizer


RANDOM: dict[str, Callable[[], Tokenizer]] = {
    "dropout": lambda: bpe(dropout=0.5),
    "all dropped": lambda: bpe(dropout=1.0),
    "unigram": random_alpha,
}


@pytest.mark.parametrize("make", RANDOM.values(), ids=RANDOM)
def test_chance_is_switched_off(make: Callable[[], Tokenizer]) -> None:
    noisy = make()
    noisy.encode_special_tokens = True
    before = {tuple(noisy.encode(TEXT).ids) for _ in range(20)}
    tokenizer = Subwords(noisy)
    ids = [tuple(one.tolist()) for one in tokenizer.encode([TEXT] * 20)]
    assert len(set(ids)) == 1
    assert len(before) > 1 or before != set(ids), "the tokenizer of the test was random, or dropped everything"
    assert any("switched off" in told for told in tokenizer.changes.values())


ENCODE = (
    "import sys; from pathlib import Path; from dsabench.data.tokenizer import load_file\n"
    "print([one.tolist() for one in load_file(Path(sys.argv[1])).encode(sys.argv[2:])])"
)


def test_two_processes_make_the_same_tokens_of_a_random_file(folder: Folder, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    bpe(dropout=0.5).save(str(path))
    told = [
        subprocess.run([sys.executable, "-c", ENCODE, path, TEXT], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert told[0] == told[1] == f"{[load_file(path).encode([TEXT])[0].tolist()]}\n"
    spec = folder({f"{i}.txt": f"{i % 8 * 'a'}{TEXT}" for i in range(5)}, tokenizer=str(path))
    data = prepare(spec)
    assert any("model.dropout is switched off" in note for note in data.notes)
    assert data.fingerprint["tokenizer"] != digest("file", path.read_bytes()), "no run with random tokens is this one"


@settings(deadline=None, max_examples=25)
@given(
    make=st.sampled_from([bpe, unigram]),
    truncate=st.booleans(),
    pad=st.booleans(),
    template=st.booleans(),
    lower=st.booleans(),
    split=st.booleans(),
    dropout=st.sampled_from([None, 0.0]),
    text=st.text(alphabet=LETTERS, max_size=80),
)
def test_settings_for_batches_change_no_ids_and_no_identity(
    tmp_path_factory: pytest.TempPathFactory,
    make: Callable[..., Tokenizer],
    truncate: bool,
    pad: bool,
    template: bool,
    lower: bool,
    split: bool,
    dropout: float | None,
    text: str,
) -> None:
    """Truncation, padding and templates belong to how a model is called, not to its text."""

    def build(whole: bool) -> Tokenizer:
        tokenizer = make(**({"dropout": dropout} if make is bpe and whole else {}))
        tokenizer.add_special_tokens(["<s>", "</s>", "<pad>"])
        if lower:
            tokenizer.normalizer = normalizers.Lowercase()
        if split:
            tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        if truncate and whole:
            tokenizer.enable_truncation(3)
        if pad and whole:
            tokenizer.enable_padding(length=90, pad_token="<pad>", pad_id=tokenizer.token_to_id("<pad>"))
        if template and whole:
            special = [(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")]
            tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=special)
        return tokenizer

    path = tmp_path_factory.mktemp("file") / "t.json"
    build(True).save(str(path))
    loaded = load_file(path)
    assert loaded.encode([text])[0].tolist() == Subwords(build(False)).encode([text])[0].tolist()
    assert loaded.encode([text, "ab"])[0].tolist() == loaded.encode([text])[0].tolist()
    assert not loaded.changes


# How the token that ends documents may come into a file, and whether text can become it.
def special(end: str) -> Tokenizer:
    tokenizer = bpe()
    tokenizer.add_special_tokens([AddedToken(end, normalized=True)])
    return tokenizer


def not_special(end: str) -> Tokenizer:
    tokenizer = bpe()
    tokenizer.add_tokens([AddedToken(end, special=False)])
    return tokenizer


def word(end: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, end: 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def unknown(end: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, end: 1}, unk_token=end))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([end])
    return tokenizer


def likely_piece(end: str) -> Tokenizer:
    tokenizer = unigram((end, 0.0))
    tokenizer.add_special_tokens([end])
    return tokenizer


MADE: list[tuple[Callable[[str], Tokenizer], bool]] = [
    (special, False),
    (not_special, True),
    (word, True),
    (unknown, True),
    (likely_piece, True),
]


@pytest.mark.parametrize("end", KNOWN_ENDS)
@pytest.mark.parametrize(("make", "reached"), MADE, ids=[make.__name__ for make, _ in MADE])
def test_the_end_of_a_document_never_comes_from_text(
    folder: Folder, tmp_path: Path, make: Callable[[str], Tokenizer], reached: bool, end: str
) -> None:
    path = tmp_path / "t.json"
    make(end).save(str(path))
    texts = {f"{i}.txt": f"a {'a' * i} {end} a{end}a\n{end}{end} zz {end.upper()}" for i in range(1, 6)}
    data = prepare(folder(texts, tokenizer=str(path)))
    known = Tokenizer.from_file(str(path)).token_to_id(end)
    assert data.end_of_document == (data.vocab_size - 1 if reached else known)
    for split in (data.train, data.val):
        ends = np.flatnonzero(split.tokens == data.end_of_document)
        assert ends.tolist() == (split.offsets[1:] - 1).tolist(), "one at the end of each document, and no other"
    assert any("an id of their own" in note for note in data.notes) == reached
    plain = digest("file", path.read_bytes())
    assert (data.fingerprint["tokenizer"] != plain) == reached, "other ids, another identity; else the old one"


def test_ends_in_a_file_of_ids_are_those_of_its_tokenizer(folder: Folder, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    not_special("</s>").save(str(path))
    end = load_file(path).separator
    ids = np.array([1, 2, 3, end, 4, 5, end, 6, 7], "<u2")
    data = prepare(folder({"a.bin": ids.tobytes()}, tokenizer=str(path)))
    assert sorted([*data.train.names, *data.val.names]) == ["a.bin:1", "a.bin:2", "a.bin:3"]
    assert end not in data.train.tokens
    assert end not in data.val.tokens
    with pytest.raises(DataError, match=rf"token 1 is {data.end_of_document}"):
        prepare(
            folder({"b.bin": np.array([1, data.end_of_document, 3], "<u2").tobytes()}, name="c", tokenizer=str(path))
        )


def test_text_that_a_normalizer_turns_into_an_end_is_refused_by_name(folder: Folder, tmp_path: Path) -> None:
    """No trial at loading can know what any normalizer may do, so that every text is looked at."""
    tokenizer = word("</s>")
    spelled, other = (normalizers.Replace(*pair) for pair in (("</s>", "E"), ("face", "</s>")))
    tokenizer.normalizer = normalizers.Sequence([spelled, other])
    path = tmp_path / "t.json"
    tokenizer.save(str(path))
    files = {"a.txt": "a a </s> a", "b.jsonl": '{"text": "a b"}\n{"text": "a face b"}\n'}
    with pytest.raises(DataError, match=r"b\.jsonl:2: the tokenizer makes of it the id 1, .*'</s>'.*bpe, bytes"):
        prepare(folder(files, tokenizer=str(path)))


def no_unknown() -> Tokenizer:
    return Tokenizer(models.WordLevel({"a": 0}, unk_token="[UNK]"))


def no_unknown_piece() -> Tokenizer:
    return Tokenizer(models.Unigram([("a", -1.0)]))


@pytest.mark.parametrize("make", [no_unknown, no_unknown_piece])
def test_what_cannot_be_encoded_is_told_with_its_record(
    folder: Folder, tmp_path: Path, make: Callable[[], Tokenizer]
) -> None:
    path = tmp_path / "t.json"
    make().save(str(path))
    spec = folder({"good.txt": "a", "x/bad.jsonl": '{"text": "a"}\n{"text": "zz"}\n'}, tokenizer=str(path))
    fingerprint(spec)
    with pytest.raises(DataError, match=r"x/bad\.jsonl:2: the tokenizer cannot encode it: ") as error:
        prepare(spec)
    assert "\n" not in str(error.value)


def test_a_panic_of_the_library_is_an_error_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """As pyo3's."""

    class Broken:
        def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> list[Any]:
            raise PanicException("index out of bounds\nnote: run with RUST_BACKTRACE=1")

    tokenizer = Subwords(bpe())
    monkeypatch.setattr(tokenizer, "_tokenizer", Broken())
    with pytest.raises(DataError, match=r"cannot encode it: index out of bounds$"):
        tokenizer.encode(["a"])
