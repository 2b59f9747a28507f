"""The sparse kernels over latents as compiled for a GPU, against fp64; layers of latents by kernels and by masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="needs triton")

from sparse_reference import Sizes, draw, error, expected_latent, expected_selection, found_latent

from dsabench.attention.dsa.triton.unions import share, unite
from dsabench.model.transformer import ForwardPass, build
from dsabench.spec.run import RunSpec, validate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

NAMES = ("out", "loss", "d q", "d k", "d q_index", "d k_index", "d w_index")
CASES = [
    (Sizes(batch=2, length=333, heads=16, width=80, index_heads=4, index_width=64, k=40, documents=0.01), 64),
    (Sizes(length=402, heads=16, width=192, index_heads=4, index_width=64, k=50), 128),
    (Sizes(batch=2, length=257, heads=5, width=90, index_heads=3, index_width=12, k=33, documents=0.02), 70),
    (Sizes(length=130, heads=64, width=320, index_heads=4, index_width=64, k=20), 256),
]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize(("sizes", "value"), CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_outputs_and_all_gradients(
    sizes: Sizes, value: int, dtype: torch.dtype, tolerance: float, groups: bool, deterministic: bool
) -> None:
    """Groups only where the layer forms them: of bf16, and of keys that fit the registers."""
    x = draw(sizes, 1, "cuda", grid=False)
    selected = expected_selection(x, sizes.k)
    given = x.to(dtype)
    if groups and share(given.q, given.k, selected) is None:
        return
    united = unite(selected, 4, 1.0) if groups else None
    found = found_latent(given, selected, value, 0.1, deterministic, united)
    for name, mine, theirs in zip(NAMES, found, expected_latent(x, selected, value, 0.1), strict=True):
        assert error(mine, theirs) < tolerance, name
    if deterministic:
        again = found_latent(x.to(dtype), selected, value, 0.1, True, united)
        assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


def spec_of(kind: str, backend: str) -> RunSpec:
    field = "backend" if kind == "dsa" else "selection_backend"
    model = {"d_model": 128, "n_layers": 2, "n_heads": 8, "attention_layout": "latent"}
    return validate({"length": 700, "attention": {"kind": kind, "top_k": 60, field: backend}, "model": model})


@pytest.mark.parametrize("kind", ["dsa", "sliding_window", "oracle"])
@pytest.mark.parametrize("stage", ["dense", "sparse"])
def test_a_model_of_latents_by_kernels_learns_what_one_by_masks_does(kind: str, stage: Any) -> None:
    """Losses and all gradients in bf16, of packed documents, whose values are narrower than keys."""
    ids_BT = (torch.arange(700, device="cuda") >= 233).long().expand(2, -1)
    tokens_BT = torch.randint(300, (2, 701), generator=torch.Generator().manual_seed(0)).cuda()
    found = []
    for backend in ("masked", "triton"):
        model = build(spec_of(kind, backend), 300).cuda()
        packed = ForwardPass(stage=stage, document_ids_BT=ids_BT, most_documents=2)
        with torch.autocast("cuda", torch.bfloat16):
            loss, rest = model.training_losses(tokens_BT[:, :-1], tokens_BT[:, 1:], packed)
        (loss if rest.attention_loss is None else loss + rest.attention_loss).backward()
        gradients = [p.grad.flatten().double() for p in model.parameters() if p.grad is not None]
        found.append((loss.detach(), torch.cat(gradients)))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=2e-3, atol=0)
    assert error(found[1][1], found[0][1]) < 0.1
