"""The contract of an attention variant as checks that a test suite can run, for the built-in ones and for your own.

    import pytest
    from dsabench.spec.run import validate
    from dsabench.testing import CHECKS

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_my_attention(check):
        check(validate({"length": 24, "attention": {"kind": "my_attention"}, "plugins": ["my_attention.py"]}))

Every check takes a RunSpec, builds what it needs at that spec's size (keep it small: length 16 to 48), and raises
AssertionError (or SpecError) saying what broke. All run in fp32 on the CPU unless said otherwise.

Legend: N perturbed copies, B batch, T time, D model width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dsabench.attention.base import Attention, AttentionContext, Stage
from dsabench.attention.registry import variant
from dsabench.audit.causality import Examination, Leak, thorough
from dsabench.audit.contract_calls import TOLERANCE, rehearse
from dsabench.audit.soundness import routing, shared_start
from dsabench.model.transformer import ForwardPass, Transformer, build
from dsabench.spec.run import RunSpec

STAGES: tuple[Stage, ...] = ("dense", "sparse")

Checked = Callable[[RunSpec], None]


def _of_each_layer(check: Checked) -> Checked:
    """A check of one layer's attention, made for each different one of a hybrid stack."""

    @functools.wraps(check)
    def of_all(spec: RunSpec) -> None:
        for attention in spec.attention.distinct():
            check(spec.model_copy(update={"attention": attention}))

    return of_all


def find_leak(
    forward: Callable[[Tensor], Tensor], x_T: Tensor, other_T: Tensor, boundaries: list[int], rows: int = 64
) -> Leak | None:
    """The leak with the earliest position, or None.

    For each boundary t, `forward` sees x with everything after t taken from `other`, with only t + 1 so, and with
    only the last position so; outputs at 0..t must stay. forward: (N, T, ...) -> (N, T, ...), always called with
    `rows` copies, so that no difference comes from the batch size.
    """
    trials = [trial for t in boundaries for trial in thorough(t, len(x_T))]
    looked = Examination(
        lambda x_NT, seed: {"the output": forward(x_NT)},
        x_T,
        lambda n: other_T.expand(n, *other_T.shape),
        rows,
        TOLERANCE,
    )
    return next(iter(looked.leaks(trials)), None)


def check_calls(spec: RunSpec) -> None:
    """What training asks of an attention: outputs, own loss and captured selection of the right types and shapes, all
    finite and with finite gradients, in both stages. Raises SpecError saying what is wrong."""
    rehearse(_model(spec), STAGES)


def check_shared_start(spec: RunSpec) -> None:
    """At one seed every parameter of the dense model is in this one too, bit-identical: a pair of runs differs in its
    attention alone."""
    start = shared_start(spec, 101)
    assert not start.missing, f"{spec.attention.kind} lacks {start.missing}, which dense attention has"
    assert not start.different, f"{spec.attention.kind} starts with other values than dense in {start.different}"


@_of_each_layer
def check_causal(spec: RunSpec) -> None:
    """Changing any or all inputs after t leaves outputs at <= t as they were: every t, train and eval, both stages, in
    a window of one document and of two."""
    module = _attention(spec)
    x_TD, other_TD = _inputs(spec, 2)
    ids_BT = (torch.arange(spec.length) >= spec.length // 3).long()[None]
    for training in (True, False):
        module.train(training)
        for stage in STAGES:
            for documents_BT in (None, ids_BT):
                run = functools.partial(_run, module, stage=stage, ids_BT=documents_BT)
                leak = find_leak(run, x_TD, other_TD, list(range(spec.length)))
                mode = "train" if training else "eval"
                packed = "" if documents_BT is None else " of a window of two documents"
                assert leak is None, (
                    f"{spec.attention.kind} looks ahead: in {mode} mode, {stage} stage, output {leak.position}{packed} "
                    f"changed by {leak.size:.2g} although only inputs after {leak.boundary} did"
                )


def check_causal_model(spec: RunSpec) -> None:
    """The same for logits of the whole model against its tokens, at every position: routing and loss included."""
    model = _model(spec)
    generator = torch.Generator().manual_seed(1)
    tokens_T = torch.randint(model.vocab_size, (spec.length,), generator=generator)
    other_T = (
        tokens_T + 1 + torch.randint(model.vocab_size - 1, (spec.length,), generator=generator)
    ) % model.vocab_size
    for training in (True, False):
        model.train(training)
        for stage in STAGES:
            leak = find_leak(
                functools.partial(_logits, model, stage=stage), tokens_T, other_T, list(range(spec.length))
            )
            assert leak is None, (
                f"the model with {spec.attention.kind} looks ahead: logits {leak.position} changed by {leak.size:.2g} "
                f"although only tokens after {leak.boundary} did"
            )


def check_the_seed_lives_in_tensors(spec: RunSpec) -> None:
    """A model with the parameters and buffers of another seed's computes what that one does: runs of all seeds reuse
    one model and its CUDA graphs, so a seed kept in Python would be the first run's."""
    other = spec.model_copy(update={"seed": spec.seed + 1})
    used, fresh = _model(spec), _model(other)
    tokens_BT = torch.randint(used.vocab_size, (2, spec.length), generator=torch.Generator().manual_seed(1))
    initial = {**dict(fresh.named_parameters()), **dict(fresh.named_buffers())}
    with torch.no_grad():
        for name, tensor in [*used.named_parameters(), *used.named_buffers()]:
            tensor.copy_(initial[name])
    for stage in STAGES:
        assert torch.equal(_logits(used, tokens_BT, stage), _logits(fresh, tokens_BT, stage)), (
            f"{spec.attention.kind} keeps the seed in Python: keep what depends on it in a parameter or a buffer"
        )


@_of_each_layer
def check_rows_and_calls_are_independent(spec: RunSpec) -> None:
    """A row's output depends on that row alone: not on the other rows of the batch, nor on earlier calls."""
    module = _attention(spec)
    x_TD, other_TD = _inputs(spec, 2)
    for training in (True, False):
        module.train(training)
        for stage in STAGES:
            # Another random state for each call in eval mode: what is drawn from a stream differs, and must not matter.
            seeds = (0, 0, 0) if training else (0, 1, 2)
            alone = _run(module, torch.stack([x_TD, x_TD, x_TD]), stage, seed=seeds[0])[1]
            beside = _run(module, torch.stack([other_TD, x_TD, -other_TD]), stage, seed=seeds[1])[1]
            again = _run(module, torch.stack([x_TD, x_TD, x_TD]), stage, seed=seeds[2])[1]
            assert _close(beside, alone), (
                f"{spec.attention.kind}: a row's output depends on the other rows of its batch"
            )
            assert _close(again, alone), f"{spec.attention.kind}: the output depends on earlier calls"


@_of_each_layer
def check_documents_are_separate(spec: RunSpec) -> None:
    """With document ids, changing one document leaves the outputs of the others as they were."""
    module = _attention(spec)
    x_TD, other_TD = _inputs(spec, 2)
    half = spec.length // 2
    ids_BT = (torch.arange(spec.length) >= half).long()[None]
    for stage in STAGES:
        base = _run(module, x_TD[None], stage, ids_BT)[0]
        changed_TD = torch.cat([other_TD[:half], x_TD[half:]])
        outputs = _run(module, changed_TD[None], stage, ids_BT)[0]
        assert _close(outputs[half:], base[half:]), f"{spec.attention.kind} attends across documents ({stage} stage)"


@_of_each_layer
def check_dense_at_full_k(spec: RunSpec) -> None:
    """A variant that claims it equals dense attention with the same weights once k >= L, to 1e-5, in every stage."""
    cls = variant(spec.attention.kind)
    if not cls.equals_dense_at_full_k or spec.attention.n_selected(spec.length) is None:
        return
    assert "top_k" in type(spec.attention).model_fields, (
        f"{spec.attention.kind} claims to equal dense attention at k >= L, but has no field top_k to set k by"
    )
    full = type(spec.attention).model_validate(
        {**spec.attention.model_dump(exclude={"top_k_ratio"}), "top_k": spec.length + 3}
    )
    ours = _attention(spec.model_copy(update={"attention": full}))
    dense = _attention(RunSpec.model_validate({**_plain(spec), "attention": {"kind": "dense"}}))
    dense.load_state_dict({k: v for k, v in ours.state_dict().items() if k in dense.state_dict()})
    (x_TD,) = _inputs(spec, 1)
    for stage in STAGES:
        error = (_run(ours, x_TD[None], stage) - _run(dense, x_TD[None], stage)).abs().max()
        assert error <= 1e-5, f"{spec.attention.kind} with k >= L differs from dense by {error:.2g} ({stage} stage)"


def check_gradients(spec: RunSpec) -> None:
    """The language-model loss reaches no own (indexer) parameter, the own loss nothing else, and each what it should.

    Also: every backbone parameter gets a gradient from the language-model loss in both stages, unless one key is
    selected (the softmax over one slot is constant, so neither queries and keys nor an indexer can learn from it).
    """
    choice = spec.attention.n_selected(spec.length) != 1
    model = _model(spec)
    tokens_BT = torch.randint(model.vocab_size, (2, spec.length + 1), generator=torch.Generator().manual_seed(2))
    for stage in STAGES:
        found = routing(model, tokens_BT, stage)
        by_lm, by_own, own, backbone = found.by_language_model, found.by_own_loss, found.own, found.backbone
        assert not by_lm & own, f"{stage} stage: the language-model loss reaches {set(by_lm & own)}"
        assert by_lm >= backbone or not choice, f"{stage} stage: no gradient reaches {set(backbone - by_lm)}"
        if by_own is not None:
            assert not by_own & backbone, f"{stage} stage: the own loss reaches {set(by_own & backbone)}"
            assert by_own >= own or not choice, f"{stage} stage: the own loss does not reach {set(own - by_own)}"


@_of_each_layer
def check_capture(spec: RunSpec) -> None:
    """A variant that selects reports it when asked: min(k, t + 1) different keys at or before t for every query t,
    and attention mass that is causal and sums to 1; reporting changes no output."""
    module = _attention(spec).eval()
    k = spec.attention.n_selected(spec.length)
    (x_TD,) = _inputs(spec, 1)
    for stage in STAGES:
        context = AttentionContext(torch.arange(spec.length), stage, capture={})
        with torch.no_grad():
            out = module(x_TD[None], context).out_BTD
        assert _close(out, _run(module, x_TD[None], stage)), f"{spec.attention.kind}: capturing changes the output"
        assert context.capture is not None
        if k is None:
            continue
        assert 0 in context.capture, f"{spec.attention.kind} selects {k} keys but puts nothing in context.capture"
        selection = context.capture[0]
        for t, row in enumerate(selection.selected_BTK[0].tolist()):
            keys = [key for key in row if key >= 0]
            assert len(keys) == len(set(keys)) == min(k, t + 1), f"query {t} selects {row} with k = {k}"
            assert max(keys) <= t, f"query {t} selects a later key: {row}"
        assert selection.mass_BTS is not None, f"{spec.attention.kind} captures no attention mass"
        sums_T = selection.mass_BTS[0].tril().sum(-1)
        assert _close(sums_T, torch.ones_like(sums_T)), f"{spec.attention.kind}: attention mass does not sum to 1"


@_of_each_layer
def check_loss_is_no_output(spec: RunSpec) -> None:
    """Outputs are the same whether `context.losses` asks for the attention's own loss or not, in both modes and both
    stages: the audit at full size does not ask."""
    module = _attention(spec)
    (x_TD,) = _inputs(spec, 1)
    for training in (True, False):
        module.train(training)
        for stage in STAGES:
            asked, not_asked = (_run(module, x_TD[None], stage, losses=losses) for losses in (True, False))
            assert _close(asked, not_asked), f"{spec.attention.kind}: the output depends on whether a loss is asked for"


@_of_each_layer
def check_flops(spec: RunSpec) -> None:
    """flops(stage) names its items and gives each as a finite number of FLOPs above zero."""
    module = _attention(spec)
    for stage in STAGES:
        items = module.flops(stage)
        assert items and all(0 < value < float("inf") for value in items.values()), (
            f"{stage} stage: flops gives {items}"
        )


CHECKS: tuple[Checked, ...] = (
    check_calls,
    check_shared_start,
    check_causal,
    check_causal_model,
    check_rows_and_calls_are_independent,
    check_the_seed_lives_in_tensors,
    check_documents_are_separate,
    check_dense_at_full_k,
    check_gradients,
    check_capture,
    check_loss_is_no_output,
    check_flops,
)
"""Every check that a variant must pass."""


def _attention(spec: RunSpec) -> Attention:
    """One attention layer with weights large enough that its outputs are of order 1 and a small leak shows."""
    module = variant(spec.attention.kind)(spec, 0)
    _enlarge(module)
    return module


def _model(spec: RunSpec) -> Transformer:
    model = build(spec, vocab_size=101)
    _enlarge(model)
    return model


def _enlarge(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(7)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=generator)


def _inputs(spec: RunSpec, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(spec.length, spec.model.d_model, generator=generator) for _ in range(count)]


def _run(
    module: Attention,
    x_NTD: Tensor,
    stage: Stage,
    ids_BT: Tensor | None = None,
    seed: int = 0,
    losses: bool = True,
) -> Tensor:
    torch.manual_seed(seed)  # dropout and the like may draw in train mode, but the same for every call
    ids_NT = None if ids_BT is None else ids_BT.expand(len(x_NTD), -1)
    context = AttentionContext(torch.arange(x_NTD.shape[1]), stage, ids_NT, losses=losses)
    with torch.no_grad():
        out: Tensor = module(x_NTD, context).out_BTD
    assert out.shape == x_NTD.shape, f"forward returned {tuple(out.shape)} for an input of {tuple(x_NTD.shape)}"
    return out


def _logits(model: Transformer, tokens_NT: Tensor, stage: Stage) -> Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        logits: Tensor = model(tokens_NT, ForwardPass(stage=stage)).logits_BTV
    return logits


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= TOLERANCE)


def _plain(spec: RunSpec) -> dict[str, object]:
    return spec.model_dump(exclude={"attention"})
