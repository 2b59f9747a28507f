"""Small random models of `transformers`, and greedy generation by dsabench's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsabench.model.transformer import Transformer

LENGTH, VOCABULARY = 48, 96

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

STRETCHED = {  # of a window so short that all three parts of the formula have frequencies
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"rms_norm_eps": 3e-3}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "llama, MHA": ("Llama", {"num_key_value_heads": 4}),
    "llama 3 stretched": ("Llama", {"rope_parameters": STRETCHED}),
    "llama, wide heads": ("Llama", {"head_dim": 24}),
    "qwen2": ("Qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen2, tied": ("Qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16, "rms_norm_eps": 3e-3}),
    "qwen3, tied": ("Qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
}


def theirs_of(kind: str, **settings: Any) -> Any:
    """A model of `transformers` with random weights; gains and biases too, which begin at 1 and 0."""
    import transformers

    torch.manual_seed(11)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **settings}, attn_implementation="eager")
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3 if parameter.ndim == 1 else 0.15)
    return model


def greedy(model: Transformer, tokens_BT: Tensor, count: int) -> Tensor:
    for _ in range(count):
        with torch.no_grad():
            next_B = model(tokens_BT).logits_BTV[:, -1].argmax(-1)
        tokens_BT = torch.cat([tokens_BT, next_B[:, None]], dim=1)
    return tokens_BT
