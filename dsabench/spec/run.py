"""RunSpec: everything that decides what one training run computes, as frozen pydantic models.

A field's docstring is its documentation: `dsabench schema` prints it and editors show it. Validation is strict: the
string "256" is not the number 256. A field path such as `train.learning_rate` is the name that configs, axes, `--set`
and the run store's columns all use.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, ValidationError, model_validator

from dsabench.errors import SpecError
from dsabench.spec.attention import BUILT_IN, AttentionSpec, DSASpec
from dsabench.spec.data_settings import DataSpec
from dsabench.spec.messages import explain
from dsabench.spec.start import StartSpec
from dsabench.spec.strict_model import Positive, Spec


class ModelSpec(Spec):
    """A pre-norm transformer with a mixture-of-experts feed-forward, the same for every attention variant."""

    d_model: Annotated[int, Field(ge=4, le=65536)] = 256
    """Width of the residual stream."""

    n_layers: Annotated[int, Field(ge=1, le=1024)] = 4
    """Transformer blocks."""

    n_heads: Annotated[int, Field(ge=1, le=1024)] = 8
    """Query heads; must divide d_model into heads of even width (rotary embedding turns pairs)."""

    n_kv_heads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Key/value heads: null or n_heads is MHA, 1 is MQA, a divisor of n_heads in between is GQA."""

    d_ff: Positive = 512
    """Hidden width of one expert (SwiGLU)."""

    n_experts: Annotated[int, Field(ge=1, le=4096)] = 4
    """Experts in each layer; 1 is an ordinary feed-forward."""

    experts_per_token: Positive = 2
    """Experts that each token is routed to (top-k routing, no token is dropped)."""

    balance_loss_weight: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the load-balancing loss of Switch Transformer (its paper's alpha), which is 1 when experts are used
    evenly and here the mean over layers. A trainer that adds the layers' losses has the same with this weight divided
    by n_layers. The balance loss of Mixtral in `transformers` is experts_per_token times larger, and one of the routes
    of all layers together."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the embedding and on every residual branch, in training only."""

    embedding_std: Annotated[float, Field(gt=0)] | None = None
    """Standard deviation of the initial embedding, which is also the output layer; null is 1 / d_model, which starts
    the loss near ln V. The way in divides by it, so that the residual stream starts at variance 1 whatever it is. 1.0
    is PyTorch's own, with which a model starts far worse than uniform guessing."""

    rope_base: Annotated[float, Field(gt=1)] = 10_000.0
    """Base of the rotary position embedding's wavelengths."""

    @property
    def embedding_scale(self) -> float:
        """What the embedding is multiplied by on the way in: 1 / embedding_std, its null resolved to d_model."""
        return float(self.d_model) if self.embedding_std is None else 1.0 / self.embedding_std

    @property
    def head_dim(self) -> int:
        """Width of one head: d_model / n_heads."""
        return self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        """Key/value heads with null resolved to n_heads."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @model_validator(mode="after")
    def _heads_and_experts_fit(self) -> Self:
        if self.d_model % self.n_heads:
            near = [n for n in range(1, self.d_model + 1) if self.d_model % (2 * n) == 0]
            near = sorted(sorted(near, key=lambda n: abs(n - self.n_heads))[:4])
            raise ValueError(
                f"n_heads = {self.n_heads} does not divide d_model = {self.d_model}; "
                f"near it, {', '.join(map(str, near)) or 'nothing'} would"
            )
        if self.head_dim % 2:
            raise ValueError(f"d_model / n_heads = {self.head_dim} is odd; rotary embedding needs an even head width")
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_kv_heads = {self.kv_heads} does not divide n_heads = {self.n_heads}")
        if self.experts_per_token > self.n_experts:
            raise ValueError(f"experts_per_token = {self.experts_per_token} is more than n_experts = {self.n_experts}")
        return self


class TrainSpec(Spec):
    """The optimisation: AdamW, a learning-rate schedule, and how often the run is evaluated."""

    alternatives: ClassVar[tuple[tuple[str, str], ...]] = (("tokens_per_step", "batch_size"),)

    steps: Positive = 1000
    """Optimizer steps, the dense warm-up stage of a selecting attention included."""

    tokens_per_step: Positive | None = 4096
    """Training tokens a step, at every length, so that a trend over length is not a trend over data. The batch is this
    over the length, rounded half up."""

    batch_size: Positive | None = None
    """Windows a step, in place of tokens_per_step."""

    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1e-3
    """Peak learning rate of everything but an indexer."""

    schedule: Literal["cosine", "constant"] = "cosine"
    """After the linear warm-up: `cosine` falls to a tenth of the peak at the last step, `constant` stays."""

    warmup_steps: Annotated[int, Field(ge=0)] = 100
    """Steps over which the learning rate rises linearly from zero (not the dense warm-up stage of DSA)."""

    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """AdamW's decay of the mean squared gradient, which it remembers for about 1 / (1 - beta2) steps (beta1 is 0.9)."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay on matrices; gains, biases and the embedding have none."""

    grad_clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest global gradient norm, of backbone and indexer apart; null does not clip."""

    eval_every: Positive = 200
    """Steps between evaluations; the last step is always evaluated."""

    eval_tokens: Positive = 131_072
    """Tokens of each evaluation sample, rounded up to whole windows: that many held-out tokens, and as many
    training tokens for the generalisation gap. All there are, when there are fewer."""

    log_every: Positive = 20
    """Steps between training records; on a GPU the host waits for it only then."""


def _device_name(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError(f"{name!r} is not a device; accepted: auto, cpu, mps, cuda or cuda:N")
    return name


class EngineSpec(Spec):
    """How the run is executed. Not part of a run's identity: it must not change what is learnt."""

    device: Annotated[str, AfterValidator(_device_name)] = "auto"
    """`auto` (a CUDA GPU, else MPS, else the CPU), `cpu`, `cuda`, `cuda:N` or `mps`."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`bf16` autocast with fp32 weights, or `fp32`; `auto` is bf16 on a GPU that has it natively, else fp32."""

    compile: Literal["auto", "off", "graph", "full"] = "auto"
    """`off` launches each kernel, `graph` captures the training step in a CUDA graph, `full` also compiles the blocks
    with torch.compile (tens of seconds before the first step); `auto` is graph on CUDA, else off."""

    kernels: Literal["auto", "off"] = "auto"
    """`auto` fuses chains of small operations into Triton kernels on a CUDA GPU; `off` is plain PyTorch, slower and the
    same within rounding."""

    deterministic: Literal["auto"] | bool = "auto"
    """Same bits for the same spec and machine; `auto` is yes on the CPU and no on a GPU, where it costs time."""

    micro_batch: Positive | None = None
    """Windows of one forward and backward pass, a divisor of the batch; a step adds up their gradients. null is the
    whole batch, or on a GPU the largest part that fits. The router's balance loss is then that of each part, so that
    losses differ a little from those of the whole batch: give both attentions of a comparison the same."""

    recompute: Literal["auto"] | bool = "auto"
    """Activation checkpointing: keep what enters each block and compute the block again in the backward pass. `auto`
    does so on a GPU where not even one window fits otherwise."""

    checkpoint_every: Positive | None = None
    """Steps between checkpoints to resume from; null writes one at evaluations, at most every 20 s."""


def settings_class(kind: Any, origin: str = "") -> type[AttentionSpec]:
    """The settings class of an attention by name. Raises SpecError that begins with `origin` and says what there is.

    A built-in one needs no torch; a plugin's is asked of the registry.
    """
    if isinstance(kind, str) and kind in BUILT_IN:
        return BUILT_IN[kind]
    from dsabench.attention.registry import spec_class

    try:
        return spec_class(kind)
    except SpecError as error:
        raise SpecError(f"{origin}{error}") from error


def _attention(value: Any) -> Any:
    """Read a mapping as the settings class that its `kind` names."""
    if not isinstance(value, dict):
        return value
    return settings_class(value.get("kind", "dsa")).model_validate({"kind": "dsa", **value})


class RunSpec(Spec):
    """One training run: two runs with the same RunSpec (engine aside) and the same data are the same run."""

    length: Annotated[int, Field(ge=2, le=1_048_576)] = 256
    """Tokens in a window, the sequence length L."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Training seed: initial weights and batch order. Shared weights and batches do not depend on the attention."""

    attention: SerializeAsAny[Annotated[AttentionSpec, BeforeValidator(_attention)]] = DSASpec()
    """The attention variant and its fields; `kind` names the variant."""

    model: ModelSpec = ModelSpec()
    """The model around the attention."""

    data: DataSpec = DataSpec()
    """The text, or the task."""

    train: TrainSpec = TrainSpec()
    """The optimisation."""

    engine: EngineSpec = EngineSpec()
    """The execution."""

    plugins: list[str] = Field([])
    """Python files that register attention variants of your own; they run as code, so name only files you trust."""

    allow_leak: bool = False
    """True trains a model that fails the causality audit, and marks its run LEAK wherever it shows; false refuses."""

    start: StartSpec | None = None
    """The trained model that the run starts from; null draws all weights."""

    @property
    def batch_size(self) -> int:
        """Windows a step: train.batch_size, or tokens_per_step / length rounded half up."""
        if self.train.batch_size is not None:
            return self.train.batch_size
        assert self.train.tokens_per_step is not None
        return math.floor(self.train.tokens_per_step / self.length + 0.5)

    @property
    def tokens_per_step(self) -> int:
        """Training tokens a step: batch_size * length; near, not always at, train.tokens_per_step."""
        return self.batch_size * self.length

    @model_validator(mode="after")
    def _a_window_holds_the_task(self) -> Self:
        if self.data.task is not None:
            self.data.task.check_length(self.length)
        return self

    @model_validator(mode="after")
    def _a_step_holds_a_window(self) -> Self:
        if self.batch_size < 1:
            raise ValueError(
                f"train.tokens_per_step = {self.train.tokens_per_step} holds no window of length {self.length}; "
                f"make it at least {self.length}, or set train.batch_size"
            )
        return self


def validate(values: dict[str, Any], where: Callable[[str], str] = lambda path: "") -> RunSpec:
    """A RunSpec from nested plain values; its plugins are imported.

    `where(path)` is what to put before a problem with the field at `path`: the file and line, or the flag, that set it.
    Raises SpecError with one line for each problem.
    """
    if isinstance(values.get("plugins"), list):
        from dsabench.attention.plugins import load_plugin

        origin = where("plugins")
        values = {**values, "plugins": [load_plugin(str(plugin), origin) for plugin in values["plugins"]]}
    problems: list[str] = []
    rest = dict(values)
    attention = rest.pop("attention", {})
    valid: AttentionSpec | None = attention if isinstance(attention, AttentionSpec) else None
    if valid is None and not isinstance(attention, dict):
        problems.append(
            f"{where('attention')}attention = {attention!r} is not accepted; accepted: a mapping with a `kind`"
        )
    elif valid is None:
        model = settings_class(attention.get("kind", "dsa"), where("attention.kind"))
        try:
            valid = model.model_validate(attention)
        except ValidationError as error:
            problems += explain(error, model, "attention", where)
    try:
        spec = RunSpec.model_validate({**rest, **({"attention": valid} if valid else {})})
    except ValidationError as error:
        problems += explain(error, RunSpec, "", where)
    if problems:
        raise SpecError("\n".join(problems))
    return spec
