"""The latent layout: its two forms, its selections, what it costs, what it starts from, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from single_runs import DSA as SMALL_DSA
from single_runs import base
from torch.utils.flop_counter import FlopCounterMode

import dsabench
from dsabench.attention import scaled_dot_product
from dsabench.attention.base import Attention, AttentionContext, capture_mass
from dsabench.attention.construction import construct
from dsabench.attention.dsa import backends, masked, reference
from dsabench.attention.latent import LatentProjections
from dsabench.audit.small_models import small_copies
from dsabench.bench.trained import TrainedRun
from dsabench.engine.device import resolve
from dsabench.engine.memory_plan import estimate
from dsabench.engine.starting_weights import mismatch, shapes_of
from dsabench.errors import CheckpointError, SpecError
from dsabench.model.transformer import build
from dsabench.model.transformers_folder import architecture_of
from dsabench.spec.identity import run_id
from dsabench.spec.run import EngineSpec, RunSpec, validate

RANKS = {"q_lora_rank": 24, "kv_lora_rank": 14, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 8}
INDEXER = {"n_heads": 2, "head_dim": 8}
DSA = {"kind": "dsa", "top_k": 5, "indexer": INDEXER}


def spec_of(attention: dict[str, Any] | None = None, length: int = 20, n_heads: int = 4, **ranks: Any) -> RunSpec:
    model = {"d_model": 32, "n_layers": 2, "n_heads": n_heads, "d_ff": 24, "attention_layout": "latent"}
    model["latent"] = {**RANKS, **ranks}
    return validate({"length": length, "attention": attention or {"kind": "dense"}, "model": model})


def layer(spec: RunSpec) -> Attention:
    """In fp64, gains off their initial one."""
    attention: Attention = build(spec, 50).layers()[0].attention.double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in attention.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.mul_(2.0)
    return attention


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


@settings(max_examples=25, deadline=None)
@given(
    ranks=st.tuples(st.none() | st.integers(1, 30), st.integers(1, 30)),
    widths=st.tuples(st.integers(1, 12), st.sampled_from([2, 4, 10])),
    n_heads=st.integers(1, 5),
    length=st.integers(2, 25),
    packed=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_both_forms_are_one_attention(
    ranks: tuple[int | None, int], widths: tuple[int, int], n_heads: int, length: int, packed: bool, seed: int
) -> None:
    """Outputs and all gradients of masks over keys of heads, of masks over latents and of gathered latents."""
    sizes = dict(zip(RANKS, (*ranks, *widths), strict=False))
    spec = spec_of(None, length, n_heads, **sizes, v_head_dim=min(8, sum(widths)))
    attention = layer(spec)
    x_BTD, weight = drawn(seed, 2, length, 32), drawn(seed + 1, 2, length, 32)
    ids_BT = (torch.arange(length) >= length // 3).long().expand(2, -1) if packed else None
    context = AttentionContext(torch.arange(length), document_ids_BT=ids_BT)
    p = attention.projections
    assert p.value_width == ranks[1]
    q, k, v = p.heads(x_BTD, context)
    outputs = [
        p.merge(scaled_dot_product.attention(q, k, v, ids_BT)),
        p.merge(masked.attention(q, k, v, context.allowed)[0]),
    ]
    q, k, v = p.sparse_heads(x_BTD, context)
    assert torch.equal(v, k[..., : p.value_width]) and k.shape[2] == 1
    every_BTK = torch.where(context.allowed, torch.arange(length), reference.EMPTY).expand(2, -1, -1)
    for out in (
        masked.attention(q, k, v, context.allowed, p.scale)[0],
        reference.attention(q, k, v, every_BTK, p.scale)[0],
    ):
        outputs.append(p.sparse_merge(out))
    gradients = [torch.autograd.grad((out * weight).sum(), tuple(p.parameters()), retain_graph=True) for out in outputs]
    for out, gradient in zip(outputs[1:], gradients[1:], strict=True):
        torch.testing.assert_close(out, outputs[0], rtol=1e-9, atol=1e-10)
        for ours, theirs in zip(gradient, gradients[0], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", ["dsa", "sliding_window", "oracle", "block"])
@pytest.mark.parametrize("whole", [True, False])
@torch.no_grad()
def test_a_selection_is_judged_by_the_attention_of_all_heads(kind: str, whole: bool) -> None:
    """The captured mass, in either stage, is that of keys of heads."""
    attention = layer(spec_of({**(DSA if kind == "dsa" else {}), "kind": kind, "top_k": 5})).float()
    x_BTD = drawn(3, 2, 20, 32).float()
    for stage in ("dense", "sparse"):
        context = AttentionContext(torch.arange(20), stage, capture={}, whole_mass=whole)  # type: ignore[arg-type]
        attention(x_BTD, context)
        assert context.capture is not None
        found = context.capture[0]
        q, k, _ = attention.projections.heads(x_BTD, context)
        mass_BTS = capture_mass(q, k, context)
        inside_BT = (mass_BTS.gather(-1, found.selected_BTK.clamp(min=0)) * (found.selected_BTK >= 0)).sum(-1)
        if whole:
            assert found.mass_BTS is not None
            torch.testing.assert_close(found.mass_BTS, mass_BTS, rtol=1e-4, atol=1e-6)
        else:
            torch.testing.assert_close(found.mass_inside_BQ, inside_BT, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_the_oracle_selects_what_keys_of_heads_would() -> None:
    attention = layer(spec_of({"kind": "oracle", "top_k": 5}))
    x_BTD, context = drawn(4, 2, 20, 32), AttentionContext(torch.arange(20), capture={})
    attention(x_BTD, context)
    q, k, _ = attention.projections.heads(x_BTD, context)
    expected = reference.select_top_k(capture_mass(q, k, context), context.allowed, 5)
    assert context.capture is not None
    assert torch.equal(context.capture[0].selected_BTK.sort(-1).values, expected.sort(-1).values)


@torch.no_grad()
def test_the_indexers_queries_are_made_of_the_query_latent() -> None:
    """As in DeepSeek-V3.2; of x where queries have no low rank."""
    x_BTD, context = drawn(5, 1, 20, 32), AttentionContext(torch.arange(20))
    for rank, width in ((24, 24), (None, 32)):
        attention = layer(spec_of(DSA, q_lora_rank=rank))
        source = attention.projections.query_source(x_BTD)
        assert source.shape[-1] == attention.indexer.query.in_features == width  # type: ignore[union-attr]
        found = attention.indexer.heads(x_BTD, context, source)  # type: ignore[operator, union-attr]
        q_BTC = torch.nn.functional.linear(source, attention.indexer.query.weight)  # type: ignore[arg-type, union-attr]
        norm = found[0].norm(dim=-1)
        torch.testing.assert_close(norm, q_BTC.unflatten(-1, (2, 8)).norm(dim=-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [24, None])
@pytest.mark.parametrize("stage", ["dense", "sparse"])
def test_flops_are_those_that_pytorch_counts(rank: int | None, stage: Any) -> None:
    """Of masks over all pairs, whose number is the double of the causal ones."""
    spec = spec_of({"kind": "sliding_window", "top_k": 64}, 64, q_lora_rank=rank)
    attention = construct(spec, 0)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        attention(torch.randn(1, 64, 32), AttentionContext(torch.arange(64), stage=stage))
    items = attention.flops(stage)
    ours = items["attention projections"] / 3 + items["attention"] / 3 * 2 * 64 / 65
    assert counter.get_total_flops() == pytest.approx(ours, rel=1e-6)
    dense = construct(spec_of(None, 64, q_lora_rank=rank), 0).flops("sparse")
    assert dense == construct(spec, 0).flops("dense")
    assert dense["attention"] == 6 * 64 * 65 / 2 * 4 * (6 + 4 + 8)


@pytest.mark.parametrize(("attention", "least"), [({"kind": "dense"}, 0.7), (DSA, 0.5)], ids=["dense", "dsa"])
def test_the_memory_plan_counts_what_autograd_keeps(attention: dict[str, Any], least: float) -> None:
    """Of wider latents: so many numbers a token more. Masks of plain PyTorch keep scaled queries and keys for every
    head besides, which the fused ones do not."""
    execution = resolve(EngineSpec(device="cpu"))

    def kept(**ranks: int) -> tuple[float, float]:
        model = build(spec_of(attention, 64, **ranks), 50)
        seen: dict[int, int] = {}

        def keep(x: torch.Tensor) -> torch.Tensor:
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        block = model.layers()[0].attention
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            out = block(torch.randn(1, 64, 32, requires_grad=True), AttentionContext(torch.arange(64)))
        del out
        weights = sum(p.numel() * 4 for p in block.parameters())
        return sum(seen.values()) - weights, estimate(model, execution, 1, False)["activations"] / 3

    small, large = kept(), kept(kv_lora_rank=200, v_head_dim=10, q_lora_rank=90, qk_nope_head_dim=40)
    assert least < (large[1] - small[1]) / (large[0] - small[0]) < 1.2


def test_the_names_do_not_depend_on_the_attention() -> None:
    dense, dsa = (dict(build(spec_of(attention), 50).named_parameters()) for attention in (None, DSA))
    assert {name for name in dsa if ".indexer." not in name} == dense.keys()
    assert all(torch.equal(dense[name], dsa[name]) for name in dense)


def test_the_layout_of_heads_keeps_its_ids() -> None:
    plain = validate({"attention": DSA})
    given_plainly = validate({"attention": DSA, "model": {"attention_layout": "heads", "latent": None}})
    assert run_id(plain, {}) == run_id(given_plainly, {})
    latent = validate({"attention": DSA, "model": {"attention_layout": "latent"}})
    other = validate({"attention": DSA, "model": {"attention_layout": "latent", "latent": {"kv_lora_rank": 65}}})
    assert len({run_id(spec, {}) for spec in (plain, latent, other)}) == 3


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"model": {"latent": {}}}, "latent is given, and attention_layout = heads has none; set attention_layout"),
        ({"model": {"attention_layout": "latent", "n_kv_heads": 1}}, "n_kv_heads = 1 .* all heads share one latent"),
        ({"model": {"attention_layout": "latent", "head_width": 8}}, "head_width = 8 .*v_head_dim are its widths"),
        ({"model": {"attention_layout": "latent", "qk_norm": True}}, "qk_norm = true is not of .* leave it out"),
        ({"model": {"attention_layout": "latent", "qkv_bias": True}}, "qkv_bias = true .* have no biases"),
        ({"model": {"attention_layout": "latent", "latent": {"qk_rope_head_dim": 3}}}, "qk_rope_head_dim.*multiple"),
        ({"model": {"attention_layout": "latent", "latent": {"v_head_dim": 49}}}, "v_head_dim = 49 is more than .* 48"),
        ({"model": {"attention_layout": "latents"}}, "accepted: one of heads, latent"),
        ({"attention": {**DSA, "backend": "triton"}, "model": {"attention_layout": "latent", "latent": {
            "kv_lora_rank": 512}}}, "triton cannot run: model.latent.kv_lora_rank is 512, and .* at most 256"),
        ({"attention": {"kind": "strided", "selection_backend": "triton"}, "model": {"attention_layout": "latent",
            "latent": {"qk_rope_head_dim": 128}}}, "triton cannot run: model.latent.qk_rope_head_dim is 128"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_message(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        construct(validate({"attention": {"kind": "dense"}, **fields}), 0)


def test_the_deployed_sizes_take_masks() -> None:
    """512 + 64, which the kernels do not hold on chip."""
    long = {"length": 65_536, "train": {"batch_size": 1, "tokens_per_step": None}}
    model = {"attention_layout": "latent", "n_heads": 16, "latent": {"kv_lora_rank": 512, "qk_rope_head_dim": 64}}
    for kind, field in (("dsa", "backend"), ("sliding_window", "selection_backend")):
        spec = validate({**long, "attention": {"kind": kind, "top_k": 2048}, "model": model})
        assert getattr(type(construct(spec, 0)).resolve(spec, None), field) == "masked"
        model_that_fits = {**model, "latent": {"kv_lora_rank": 128, "qk_rope_head_dim": 64}}
        fits = validate({**long, "attention": {"kind": kind, "top_k": 2048}, "model": model_that_fits})
        assert getattr(type(construct(fits, 0)).resolve(fits, None), field) == "triton"
    assert backends.limit_of_latent(None) is None


def test_an_attention_that_was_not_made_for_it_is_refused(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    text = (Path(__file__).parents[2] / "configs/custom_attention/my_attention.py").read_text()
    plugin.write_text(text.replace("my_attention", "my_latent_attention"))
    fields = {"attention": {"kind": "my_latent_attention"}, "plugins": [str(plugin)]}
    validate(fields)
    with pytest.raises(SpecError, match=r"latent is not for attention my_latent_attention: it takes .*accepted: heads"):
        validate({**fields, "model": {"attention_layout": "latent"}})


def test_no_class_of_transformers_is_written() -> None:
    with pytest.raises(CheckpointError, match=r"attention_layout = latent: the DeepSeek-V3 .* routes its experts"):
        architecture_of(spec_of())


def test_a_model_of_the_other_layout_is_no_start() -> None:
    """Every projection would be drawn anew, and nothing would say so."""
    latent = shapes_of(build(spec_of(DSA), 50))
    heads = shapes_of(build(validate({"length": 20, "attention": {"kind": "dense"}, "model": {
        "d_model": 32, "n_layers": 2, "n_heads": 4, "d_ff": 24}}), 50))  # fmt: skip
    assert "projections.latent_up.weight is missing" in mismatch(heads, latent)
    assert mismatch(shapes_of(build(spec_of(), 50)), latent) == ""


def test_small_copies_of_the_audit_have_it_too() -> None:
    copies = small_copies(spec_of(DSA, 64), torch.device("cpu"))
    assert copies
    for copy in copies:
        assert copy.model.latent == spec_of().model.latent
        assert isinstance(build(copy, 50).layers()[0].attention.projections, LatentProjections)


def test_a_dense_model_becomes_a_sparse_one(tmp_path: Path) -> None:
    """Trained, audited, evaluated, continued as DSA from the dense parent's very weights, loaded again, not timed."""
    corpus = tmp_path / "texts"
    corpus.mkdir()
    for number in range(12):
        (corpus / f"{number}.txt").write_text(f"the cat sat on mat {number} and then some more " * 30)
    fields = base(corpus, steps=20, eval_every=10)
    fields["model"] = {**fields["model"], "attention_layout": "latent", "latent": RANKS}
    fields |= {"attention": SMALL_DSA, "start": {"parent": {"attention.kind": "dense"}}}
    store = tmp_path / "runs"
    parent_spec = {**fields, "attention": {"kind": "dense"}}
    del parent_spec["start"]
    parent = dsabench.train(validate(parent_spec), store=store)
    child = dsabench.train(validate(fields), store=store)
    assert (parent.status, child.status) == ("done", "done"), child.error
    metrics = dsabench.load_metrics(store, run_ids=[child.run_id])
    at_start = metrics[(metrics["kind"] == "eval") & (metrics["step"] == 0)].iloc[0]
    assert at_start["val_loss"] == pytest.approx(parent.summary["val_loss"], abs=1e-6)
    assert 0 < child.summary["mass_recall"] <= 1
    assert dict(dsabench.load_runs(store).iloc[0])["model.latent.kv_lora_rank"] == 14
    model = dsabench.load_model(store, child.run_id)
    assert isinstance(model.layers()[0].attention.projections, LatentProjections)
    with pytest.raises(SpecError, match="its layout is latent"):
        TrainedRun(store, child.run_id, None)
