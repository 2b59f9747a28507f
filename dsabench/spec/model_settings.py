"""ModelSpec: the settings of the transformer around the attention, with all that Llama, Qwen2 and Qwen3 need."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from dsabench.errors import SpecError
from dsabench.spec.strict_model import Positive, Spec


class RopeScaling(Spec):
    """Llama 3.1's slower rotation for windows longer than the training's (`rope_type: llama3` of `transformers`).

    Of a pair of wavelength w and frequency f: f where w < original_length / high_freq_factor, f / factor where
    w > original_length / low_freq_factor, and between them s f + (1 - s) f / factor,
    s = (original_length / w - low_freq_factor) / (high_freq_factor - low_freq_factor).
    """

    factor: Annotated[float, Field(ge=1)] = 8.0
    """By how much long wavelengths are stretched; the defaults are those of Llama 3.1."""

    low_freq_factor: Annotated[float, Field(gt=0)] = 1.0
    """Wavelengths above original_length over this are stretched wholly."""

    high_freq_factor: Annotated[float, Field(gt=0)] = 4.0
    """Wavelengths below original_length over this stay."""

    original_length: Positive = 8192
    """Window that the model was trained with before it was stretched."""

    @model_validator(mode="after")
    def _low_is_below_high(self) -> Self:
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor = {self.low_freq_factor} is not below high_freq_factor = {self.high_freq_factor}"
            )
        return self


class LatentSpec(Spec):
    """Multi-head latent attention (MLA): queries, and keys with values, by low-rank projections.

    c = RMSNorm(W x), kv_lora_rank wide, is all that a token keeps, beside a part of its key that is rotated and shared
    by all heads. Source: DeepSeek-V2 and V3 (arXiv 2405.04434, section 2.1; 2412.19437), whose names these are. V3 has
    128 heads, and ranks and widths of 1536, 512, 128, 64 and 128 for a d_model of 7168.
    """

    q_lora_rank: Positive | None = 128
    """Rank of the query projection, with an RMSNorm in its middle; null is one matrix, as in DeepSeek-V2-Lite."""

    kv_lora_rank: Positive = 64
    """Width of the latent, from which every head's keys and values are made."""

    qk_nope_head_dim: Positive = 32
    """Width of the part of a head's queries and keys that is not rotated."""

    qk_rope_head_dim: Annotated[int, Field(ge=2, multiple_of=2)] = 16
    """Width of the part that is rotated; all heads have one such key."""

    v_head_dim: Positive = 32
    """Width of a head's values; at most qk_nope_head_dim + qk_rope_head_dim."""

    @property
    def qk_head_dim(self) -> int:
        """Width of a head's queries and keys."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def gathered_width(self) -> int:
        """What a token keeps, and a sparse kernel gathers: the latent and the rotated key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @model_validator(mode="after")
    def _values_fit_beside_keys(self) -> Self:
        if self.v_head_dim > self.qk_head_dim:
            raise ValueError(
                f"v_head_dim = {self.v_head_dim} is more than qk_nope_head_dim + qk_rope_head_dim = "
                f"{self.qk_head_dim}; accepted: at most that, because fused attention takes values no wider than keys"
            )
        return self


class ModelSpec(Spec):
    """A pre-norm transformer with a mixture-of-experts feed-forward, the same for every attention variant."""

    d_model: Annotated[int, Field(ge=4, le=65536)] = 256
    """Width of the residual stream."""

    n_layers: Annotated[int, Field(ge=1, le=1024)] = 4
    """Transformer blocks."""

    n_heads: Annotated[int, Field(ge=1, le=1024)] = 8
    """Query heads; must divide d_model into heads of even width (rotary embedding turns pairs), unless head_width is
    set."""

    n_kv_heads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Key/value heads: null or n_heads is MHA, 1 is MQA, a divisor of n_heads in between is GQA."""

    head_width: Annotated[int, Field(ge=2, le=65536, multiple_of=2)] | None = None
    """Width of one head; null is d_model / n_heads. All heads together may then be wider or narrower than d_model."""

    qkv_bias: bool = False
    """True gives the query, key and value projections a bias, as Qwen2 has."""

    qk_norm: bool = False
    """True puts an RMSNorm over each head of queries and keys before they are rotated, as Qwen3 has; one gain for the
    queries of a layer and one for its keys."""

    attention_layout: Literal["heads", "latent"] = "heads"
    """`heads` has keys and values of their own for each KV head; `latent` is the multi-head latent attention (MLA) of
    DeepSeek-V2 and V3, whose sizes are those of `latent`. Dense attention, dsa and the ablations have it."""

    latent: LatentSpec | None = None
    """Sizes of the latent layout, each with a default; null where attention_layout is heads, which has none."""

    short_convolution: Annotated[int, Field(ge=2, le=16)] | None = None
    """Taps of a causal convolution of each channel before every attention, its own token among them; its input is added
    to it. null is none. With one, a model can tell what stood before a token from its first step on, and learns to look
    things up hundreds of steps earlier and with less luck; it is the same for every attention. Usual is 4."""

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
    """Standard deviation of the initial embedding, which is also the output layer (unless tied_head is false); null is
    1 / d_model, which starts the loss near ln V. The way in divides by it, so that the residual stream starts at
    variance 1 whatever it is. 1.0 is PyTorch's own, with which a model starts far worse than uniform guessing; it is
    also that of models which do not multiply their embedding, as Llama and Qwen do not."""

    tied_head: bool = True
    """The output layer is the embedding itself; false gives it a matrix of its own, which starts with standard
    deviation 1 / d_model."""

    vocab_size: Positive | None = None
    """Rows of embedding and output layer; null is the tokenizer's ids. More than those are rows that no text uses:
    models that others trained are often padded."""

    norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-6
    """Epsilon of every RMSNorm: those before attention and experts, the last one, and qk_norm's."""

    rope_base: Annotated[float, Field(gt=1)] = 10_000.0
    """Base of the rotary position embedding's wavelengths."""

    rope_scaling: RopeScaling | None = None
    """Llama 3.1's stretching of long wavelengths; null is none."""

    @property
    def embedding_scale(self) -> float:
        """What the embedding is multiplied by on the way in: 1 / embedding_std, its null resolved to d_model."""
        return float(self.d_model) if self.embedding_std is None else 1.0 / self.embedding_std

    @property
    def head_dim(self) -> int:
        """Width of one head's queries and keys: head_width, its null resolved to d_model / n_heads; of the latent
        layout both parts together."""
        if self.latent is not None:
            return self.latent.qk_head_dim
        return self.d_model // self.n_heads if self.head_width is None else self.head_width

    @property
    def heads_width(self) -> int:
        """Width of all query heads together: n_heads head_dim, which is d_model unless head_width is set, or the layout
        is latent."""
        return self.n_heads * self.head_dim

    @property
    def values_width(self) -> int:
        """Width of the outputs of all heads together."""
        return self.heads_width if self.latent is None else self.n_heads * self.latent.v_head_dim

    @property
    def gathered_heads(self) -> int:
        """KV heads of the form that sparse attention takes: kv_heads, or the one latent."""
        return self.kv_heads if self.latent is None else 1

    @property
    def gathered_width(self) -> int:
        """Width of a key of that form."""
        return self.head_dim if self.latent is None else self.latent.gathered_width

    @property
    def kv_heads(self) -> int:
        """Key/value heads with null resolved to n_heads."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @model_validator(mode="before")
    @classmethod
    def _the_latent_layout_has_sizes(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("attention_layout") == "latent" and values.get("latent") is None:
            return {**values, "latent": {}}
        return values

    @model_validator(mode="after")
    def _the_layout_has_what_is_given(self) -> Self:
        if self.latent is not None and self.attention_layout == "heads":
            raise ValueError(
                "latent is given, and attention_layout = heads has none; set attention_layout: latent, or leave it out"
            )
        if self.latent is None:
            return self
        for name, instead in (
            ("n_kv_heads", "all heads share one latent"),
            ("head_width", "latent.qk_nope_head_dim, latent.qk_rope_head_dim and latent.v_head_dim are its widths"),
            ("qkv_bias", "its projections have no biases"),
            ("qk_norm", "its norms are those of the latents"),
        ):
            if value := getattr(self, name):
                raise ValueError(
                    f"{name} = {str(value).lower()} is not of attention_layout = latent, where {instead}; leave it out"
                )
        return self

    @model_validator(mode="after")
    def _heads_and_experts_fit(self) -> Self:
        if self.latent is None and self.head_width is None and self.d_model % self.n_heads:
            near = [n for n in range(1, self.d_model + 1) if self.d_model % (2 * n) == 0]
            near = sorted(sorted(near, key=lambda n: abs(n - self.n_heads))[:4])
            raise ValueError(
                f"n_heads = {self.n_heads} does not divide d_model = {self.d_model}; "
                f"near it, {', '.join(map(str, near)) or 'nothing'} would; or set head_width"
            )
        if self.latent is None and self.head_dim % 2:
            raise ValueError(f"d_model / n_heads = {self.head_dim} is odd; rotary embedding needs an even head width")
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_kv_heads = {self.kv_heads} does not divide n_heads = {self.n_heads}")
        if self.experts_per_token > self.n_experts:
            raise ValueError(f"experts_per_token = {self.experts_per_token} is more than n_experts = {self.n_experts}")
        return self

    def rows(self, ids: int) -> int:
        """Rows of the embedding for a tokenizer of so many ids. Raises SpecError where vocab_size is less."""
        if self.vocab_size is not None and self.vocab_size < ids:
            raise SpecError(
                f"model.vocab_size = {self.vocab_size} is less than the {ids} ids of the tokenizer (data.tokenizer), "
                "the end of a document included; take that model's tokenizer, or let model.vocab_size be null"
            )
        return ids if self.vocab_size is None else self.vocab_size
