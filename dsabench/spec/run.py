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

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)

from dsabench.errors import SpecError
from dsabench.spec.attention import AttentionSpec, DSASpec, kind_of
from dsabench.spec.attention import settings_class as settings_class
from dsabench.spec.data_settings import DataSpec
from dsabench.spec.messages import explain
from dsabench.spec.model_settings import ModelSpec as ModelSpec
from dsabench.spec.start import StartSpec
from dsabench.spec.strict_model import Positive, Spec


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
    """Decoupled weight decay on matrices; gains, biases, the embedding and the output layer have none."""

    grad_clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest global gradient norm, of backbone and indexer apart; null does not clip."""

    eval_every: Positive = 200
    """Steps between evaluations; the last step is always evaluated."""

    eval_tokens: Positive = 131_072
    """Tokens of each evaluation sample, rounded up to whole windows: that many held-out tokens, and as many
    training tokens for the generalisation gap. All there are, when there are fewer."""

    eval_multiples: list[Annotated[int, Field(ge=2, le=256)]] = Field([], max_length=8)
    """Length extrapolation: before the first step and after the last, the model is also evaluated on held-out windows
    of so many times the length, rising, such as 2 and 4, on eval_tokens each. It is taken as it stands: positions go
    beyond those it was trained at, and a query keeps as many keys as attention.top_k (or a schedule that still holds)
    says, or as top_k_ratio gives at that length. The memory of such windows is not planned for."""

    log_every: Positive = 20
    """Steps between training records; on a GPU the host waits for it only then."""

    @field_validator("eval_multiples")
    @classmethod
    def _rising(cls, multiples: list[int]) -> list[int]:
        if sorted(set(multiples)) != multiples:
            raise ValueError(f"they must rise; {sorted(set(multiples))} do")
        return multiples


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
    """Steps between checkpoints to resume from; null writes one at evaluations, at most every 20 s and
    in at most a fiftieth of the time."""


def _attention(value: Any) -> Any:
    """Read a mapping as the settings class that its `kind` names."""
    if not isinstance(value, dict):
        return value
    return settings_class(kind := kind_of(value)).model_validate({**value, "kind": kind})


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

    _stack: AttentionSpec | None = PrivateAttr(None)

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

    @property
    def expected_vocab_size(self) -> int:
        """Ids of the tokenizer, as far as the spec tells: those of a tokenizer.json fit into model.vocab_size, where
        that is set."""
        trained = self.data.task is not None or self.data.tokenizer in ("bpe", "bytes")
        expected = self.data.expected_vocab_size
        return expected if trained or self.model.vocab_size is None else self.model.vocab_size

    @model_validator(mode="after")
    def _the_attention_takes_the_layout(self) -> Self:
        if self.model.attention_layout == "latent" and (why := self.attention.why_not_latent()):
            raise ValueError(
                f"model.attention_layout = latent is not for attention {self.attention.kind}: {why}; accepted: heads"
            )
        return self

    @model_validator(mode="after")
    def _a_window_holds_the_task(self) -> Self:
        if self.data.task is not None:
            self.data.task.check_length(self.length)
        return self

    def of_layer(self, layer: int) -> RunSpec:
        """The spec as the layer's attention sees it: with the settings of that layer."""
        attention = self.attention.at(layer)
        if attention is self.attention:
            return self
        found = self.model_copy(update={"attention": attention})
        found._stack = self.attention
        return found

    @property
    def stack(self) -> AttentionSpec:
        """The attention of all layers, where `attention` is that of one (`of_layer`)."""
        return self.attention if self._stack is None else self._stack

    @model_validator(mode="after")
    def _the_model_holds_the_attention(self) -> Self:
        self.attention.check_model(self.model.n_layers, self.train.steps)
        return self

    @model_validator(mode="after")
    def _a_schedule_of_keys_changes_sparse_steps(self) -> Self:
        steps, dense = self.train.steps, self.attention.warmup_steps(self.train.steps)
        for step in self.attention.key_changes():
            if not dense < step < steps:
                raise ValueError(
                    f"attention.top_k_schedule changes k before step {step}; accepted: a step above the {dense} of the "
                    f"dense warm-up and below train.steps = {steps}"
                )
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
        model = settings_class(kind_of(attention), where("attention.kind"))
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
