"""Settings of the attentions: the base of every variant's, and those of all built-in ones. Loads no torch.

Each class is the spec of the variant named by its `kind`; the module that computes it names the class as its
`spec_class`. A variant has a file here and its class a line in `BUILT_IN`.
"""

from __future__ import annotations

from dsabench.spec.attention.ablation_settings import AblationSpec
from dsabench.spec.attention.attention_spec import AttentionSpec, warmup_steps
from dsabench.spec.attention.block_settings import BlockSpec
from dsabench.spec.attention.dense_settings import DenseSpec
from dsabench.spec.attention.dsa_settings import DSASpec
from dsabench.spec.attention.hybrid_settings import HybridSpec
from dsabench.spec.attention.indexer_settings import IndexerSpec
from dsabench.spec.attention.oracle_settings import OracleSpec
from dsabench.spec.attention.random_settings import RandomSpec
from dsabench.spec.attention.selecting_settings import ScheduledSpec, SelectingSpec, keys_kept
from dsabench.spec.attention.settings_by_name import kind_of, settings_class
from dsabench.spec.attention.sink_window_settings import SinkWindowSpec
from dsabench.spec.attention.sliding_window_settings import SlidingWindowSpec
from dsabench.spec.attention.strided_settings import StridedSpec

__all__ = [
    "BUILT_IN",
    "AblationSpec",
    "AttentionSpec",
    "BlockSpec",
    "DSASpec",
    "DenseSpec",
    "HybridSpec",
    "IndexerSpec",
    "OracleSpec",
    "RandomSpec",
    "ScheduledSpec",
    "SelectingSpec",
    "SinkWindowSpec",
    "SlidingWindowSpec",
    "StridedSpec",
    "keys_kept",
    "kind_of",
    "settings_class",
    "warmup_steps",
]

BUILT_IN: dict[str, type[AttentionSpec]] = {
    spec.model_fields["kind"].default: spec
    for spec in (
        DenseSpec,
        DSASpec,
        SlidingWindowSpec,
        SinkWindowSpec,
        StridedSpec,
        RandomSpec,
        OracleSpec,
        BlockSpec,
        HybridSpec,
    )
}
"""The settings class of every built-in variant by its name, in the order in which they are listed."""
