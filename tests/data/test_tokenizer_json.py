"""tokenizer.json for other programs: the ids of any text are dsabench's, and the end of a document has its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, models, pre_tokenizers
from tokenizers import Tokenizer as Model

from dsabench.data.tokenizer import END_OF_DOCUMENT, Bytes, Subwords, Tokenizer, train_bpe
from dsabench.data.tokenizer_json import write_tokenizer_json

EVERY_BYTE = "".join(map(chr, range(0x180))) + "\u20ac\uffff\U0001f600\U0010ffff"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, Model, str]]:
    """Of each kind: the tokenizer, the file as the library reads it, and the text of the end."""
    found: dict[str, tuple[Tokenizer, Model, str]] = {}
    for name, tokenizer in (("bytes", Bytes()), ("bpe", train_bpe(["the cat sat on the mat " * 50], 300))):
        path = tmp_path_factory.mktemp(name) / "tokenizer.json"
        end = write_tokenizer_json(tokenizer, path)
        found[name] = tokenizer, Model.from_file(str(path)), end
    return found


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
@given(text=st.text(max_size=40).filter(lambda text: END_OF_DOCUMENT not in text))
@example(text=EVERY_BYTE)
def test_any_text_has_the_same_ids(made: dict[str, tuple[Tokenizer, Model, str]], kind: str, text: str) -> None:
    tokenizer, written, _ = made[kind]
    ids = written.encode(text).ids
    assert ids == tokenizer.encode([text])[0].tolist()
    assert written.decode(ids) == text


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_the_end_of_a_document_is_one_special_token(made: dict[str, tuple[Tokenizer, Model, str]], kind: str) -> None:
    tokenizer, written, end = made[kind]
    assert end == END_OF_DOCUMENT
    assert written.encode(f"a{end}").ids[-1] == tokenizer.end_of_document
    assert written.get_vocab_size() == tokenizer.vocab_size
    assert written.decode([tokenizer.end_of_document]) == ""


@pytest.mark.parametrize("spelled", [False, True])
def test_a_file_without_an_end_gets_one(spelled: bool, tmp_path: Path) -> None:
    """Also where the usual text of an end is a word that text makes."""
    words = ["cat", "mat", *([END_OF_DOCUMENT] if spelled else [])]
    model = Model(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="cat"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if spelled:
        model.add_tokens([AddedToken(END_OF_DOCUMENT, special=False)])
    tokenizer = Subwords(model)
    assert tokenizer.end_of_document == len(words)
    end = write_tokenizer_json(tokenizer, tmp_path / "tokenizer.json")
    written = Model.from_file(str(tmp_path / "tokenizer.json"))
    assert written.token_to_id(end) == len(words)
    assert (end == END_OF_DOCUMENT) is not spelled
    assert written.encode("mat cat").ids == [1, 0]
