"""A tokenizer as the tokenizer.json that other programs read, with the token that ends a document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsabench.data.tokenizer import END_OF_DOCUMENT, Bytes, Tokenizer

_OTHER_END = "<|end_of_document|>"
"""Text of an end of document that the tokenizer's own file has not, where text can make the token END_OF_DOCUMENT."""


def write_tokenizer_json(tokenizer: Tokenizer, path: Path) -> str:
    """Write `tokenizer`, whose ids stay what they are, and return the text of the token that ends a document.

    Special tokens that a text spells are read as themselves there, as is usual; dsabench reads them as text.
    """
    from tokenizers import AddedToken

    written = _of_bytes() if isinstance(tokenizer, Bytes) else _reread(tokenizer, path)
    end = written.id_to_token(tokenizer.end_of_document)
    if end is None:
        end = END_OF_DOCUMENT if written.token_to_id(END_OF_DOCUMENT) is None else _OTHER_END
        written.add_special_tokens([AddedToken(end, special=True, normalized=False)])
        assert written.token_to_id(end) == tokenizer.end_of_document
    written.save(str(path))
    return str(end)


def _reread(tokenizer: Any, path: Path) -> Any:
    from tokenizers import Tokenizer as Model

    tokenizer.save(path)
    return Model.from_file(str(path))


def _of_bytes() -> Any:
    """Byte-level BPE without merges, in which the id of a byte is its value."""
    from tokenizers import Tokenizer as Model
    from tokenizers import decoders, models, pre_tokenizers

    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = {sign: byte for byte, sign in enumerate(_signs())}
    model = Model(models.BPE(vocabulary, []))
    model.pre_tokenizer, model.decoder = level, decoders.ByteLevel()
    return model


def _signs() -> list[str]:
    """The sign that byte-level tokenizers write for each byte: itself where it is printed, else one from U+0100 on."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in shown else next(others)) for byte in range(256)]
