"""Bits per byte and the unigram baseline, counted by hand from the raw text."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
from parity import Parity

from dsabench.data.prepare import prepare_text as prepare
from dsabench.data.tokens import TokenSplit
from dsabench.data.windows import Windows
from dsabench.engine.evaluation import bits_per_byte
from dsabench.spec.run import validate

UNIGRAM = Parity("unigram baseline", "add-one counts of the raw text's tokens, by hand", 1e-12)
BITS = Parity("bits per byte", "nats of a text over ln 2 and its UTF-8 bytes, by hand", 1e-12)


def test_both_are_what_the_raw_text_gives(corpus: Path) -> None:
    """Of bytes as tokens: every number follows from the files alone."""
    length = 64
    fields = {"source": f"path:{corpus}", "tokenizer": "bytes", "val_share": 0.25}
    spec = validate({"length": length, "attention": {"kind": "dense"}, "data": fields})
    data = prepare(spec.data)
    texts = [file.read_bytes() for file in sorted(corpus.iterdir())]
    held_out = [data.decode(document).removesuffix("<|endoftext|>").encode() for document in documents(data.val)]
    assert held_out and all(text in texts for text in held_out)
    trained_on = [text for text in texts if text not in held_out]

    end = 256
    counts: Counter[int] = Counter(byte for text in trained_on for byte in [*text, end])
    total = sum(counts.values()) + 257
    nats, n_targets, n_bytes = 0.0, 0, 0
    for text in held_out:
        targets = [*text, end][1:]
        for token in targets[: len(targets) // length * length]:
            nats -= math.log((counts[token] + 1) / total)
            n_targets += 1
            n_bytes += token != end
    windows = Windows(data, length)
    baseline = windows.baseline(windows.evaluation("val"))
    UNIGRAM.check(baseline.loss, nats / n_targets)
    assert baseline.bytes_per_token is not None
    BITS.check(bits_per_byte(baseline.loss, baseline.bytes_per_token), nats / math.log(2) / n_bytes)


def test_of_longer_tokens_the_bytes_are_those_of_the_text(corpus: Path) -> None:
    fields = {"source": f"path:{corpus}", "tokenizer": "bpe", "vocab_size": 400, "val_share": 0.25}
    spec = validate({"length": 32, "attention": {"kind": "dense"}, "data": fields})
    data = prepare(spec.data)
    batch = Windows(data, 32).evaluation("val")
    text = "".join(data.decode(row) for row in np.asarray(batch.scored_targets).reshape(-1, 32))
    n_bytes = len(text.replace("<|endoftext|>", "").encode())
    loss = 2.5
    found = data.baseline(batch).bytes_per_token
    assert found is not None and found > 1.5, "tokens of several bytes"
    BITS.check(bits_per_byte(loss, found), loss * batch.scored_targets.size / math.log(2) / n_bytes)


def documents(split: TokenSplit) -> list[np.ndarray]:
    return [split.tokens[a:b] for a, b in itertools.pairwise(split.offsets)]
