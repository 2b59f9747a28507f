"""Copy distances against a plain search; the means that are made from them; a run that records them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsabench.data import Batch
from dsabench.engine.copied_tokens import NGRAM, CopiedTokens, copy_distances
from dsabench.metrics import METRICS


def _searched(windows: Batch) -> np.ndarray:
    """The definition, a loop for each target."""
    tokens, documents = windows.tokens, windows.documents
    n_windows, length = tokens.shape[0], tokens.shape[1] - 1
    found = np.zeros((n_windows, length), int)

    def whole(n: int, last: int, document: int) -> bool:
        """Whether the gram with this last token lies in the document."""
        return documents is None or (documents[n, last - NGRAM + 1 : last] == document).all()

    for n in range(n_windows):
        for last in range(NGRAM - 1, length + 1):
            mine = 0 if documents is None else int(documents[n, last - 1])
            for earlier in range(last - 1, NGRAM - 2, -1):
                same = (tokens[n, earlier - NGRAM + 1 : earlier + 1] == tokens[n, last - NGRAM + 1 : last + 1]).all()
                if same and whole(n, last, mine) and whole(n, earlier, mine):
                    found[n, last - 1] = last - earlier
                    break
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 70), st.integers(1, 4), st.booleans(), st.integers(0, 2**32 - 1))
def test_distances_are_those_of_a_plain_search(
    n_windows: int, length: int, vocabulary: int, packed: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    tokens = random.integers(0, vocabulary, (n_windows, length + 1)).astype(np.int32)
    documents = np.sort(random.integers(0, 4, (n_windows, length)), 1).astype(np.int32) if packed else None
    windows = Batch(tokens, documents=documents)
    assert (copy_distances(windows) == _searched(windows)).all()


def test_means_by_distance() -> None:
    """Window 1: the last token of 1 2 3 4 stands 4 and 60 tokens after the same; each target costs its place."""
    tokens = np.arange(10, 10 + 65)[None].repeat(2, 0).astype(np.int32)
    tokens[1, [0, 1, 2, 3]] = tokens[1, [4, 5, 6, 7]] = tokens[1, [61, 62, 63, 64]] = (1, 2, 3, 4)
    scored = np.ones((2, 64), bool)
    scored[0, :60] = False
    copied = CopiedTokens(Batch(tokens, scored=scored))
    nats = np.arange(128.0).reshape(2, 64)
    found = copied.losses(np.where(scored, nats, np.nan))
    assert found["near_copy_loss"] == nats[1, 6] and found["far_copy_loss"] == nats[1, 63]
    assert found["far_copy_share"] == pytest.approx(1 / 68)
    others = np.concatenate([nats[0, 60:], np.delete(nats[1], [6, 63])])
    by_bin = [others.mean(), None, None, nats[1, 6], None, None, nats[1, 63]]  # distances 4 and 57: 4 to 7, 32 to 63
    assert found["loss_by_copy_distance"] == pytest.approx(by_bin)
    assert found["tokens_by_copy_distance"] == [66, 0, 0, 1, 0, 0, 1]


def test_all_tokens_together_are_the_loss() -> None:
    random = np.random.default_rng(0)
    windows = Batch(random.integers(0, 4, (3, 101)).astype(np.int32))
    copied, nats = CopiedTokens(windows), random.random((3, 100)).astype(np.float32)
    found = copied.losses(nats)
    means = [mean or 0.0 for mean in found["loss_by_copy_distance"]]
    assert np.dot(means, found["tokens_by_copy_distance"]) / 300 == pytest.approx(nats.mean(dtype=float))
    assert {name for name in found if not name.endswith("distance")} <= METRICS.keys()


def test_no_copy_far_enough_is_no_number() -> None:
    found = CopiedTokens(Batch(np.arange(9, dtype=np.int32)[None])).losses(np.ones((1, 8)))
    assert found["far_copy_loss"] is None and found["near_copy_loss"] is None and found["far_copy_share"] == 0.0
