"""The text of single tokens: joined it is the whole text, and nothing in it acts on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from dsabench.data import pieces
from dsabench.data.tokenizer import Bytes, Subwords, train_bpe

TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\ufffd"), max_size=40)

BPE: Subwords = train_bpe(["the cat sat on the mat, the caf\u00e9 \u4f60\u597d the \U0001f600 end"] * 4, 300)


@settings(deadline=None, max_examples=150)
@given(TEXT)
def test_pieces_join_to_the_text(text: str) -> None:
    for tokenizer in (Bytes(), BPE):
        ids = tokenizer.encode([text])[0].tolist()
        found = pieces(tokenizer.decode, ids)
        assert len(found) == len(ids)
        assert "".join(found) == text


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 256), max_size=30))
def test_any_ids_have_pieces(ids: list[int]) -> None:
    for tokenizer in (Bytes(), BPE):
        assert len(pieces(tokenizer.decode, ids)) == len(ids)


def test_a_character_of_several_tokens_stands_at_the_first() -> None:
    assert pieces(Bytes().decode, list("a\u4f60b".encode())) == ["a", "\u4f60", "", "", "b"]
    assert pieces(Bytes().decode, [0xBD, 0x61, 256, 0x62]) == ["\ufffd", "a", "<|endoftext|>", "b"]


def test_a_tokenizer_that_drops_the_first_space_keeps_the_others() -> None:
    words = ["\u2581the", "\u2581cat", "s"]

    def decode(ids: Sequence[int]) -> str:
        return "".join(words[i] for i in ids).replace("\u2581", " ").removeprefix(" ")

    assert pieces(decode, [0, 1, 2, 0]) == ["the", " cat", "s", " the"]
