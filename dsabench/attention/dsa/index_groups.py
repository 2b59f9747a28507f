"""Groups of layers that share one indexer (indexer.share_layers): the first of a group scores and selects for all.

The others attend to its selection S[t] and have no indexer. Their attentions p_l are targets of its indexer too: each
layer adds KL(p_l || softmax(I)) to the model's mean over layers. Summed over one group that is n times
KL(mean_l p_l || softmax(I)) and a term without gradient: for q = softmax(I) and p = mean_l p_l

    mean_l KL(p_l || q) = KL(p || q) + H(p) - mean_l H(p_l)

so that it trains the indexer on the mean of the layers' attentions, without any of them being kept, and is larger by
what the layers differ.

Sources. IndexCache (arXiv 2603.12201) names the layers Full and Shared, and trains a retained indexer on the averaged
attention of all layers that it serves: this one. GLM-5.2 deploys the same selection as IndexShare (one indexer for four
layers; its first three layers have one each), but Megatron-LM's (NVIDIA/Megatron-LM, issue 7194) and, as said there,
GLM's own training have the first layer's attention alone as the target. IndexCache also searches for the layers that
keep an indexer, where here every n-th does, and reuses indices without training, which is not here.
"""

from __future__ import annotations

from dsabench.spec.attention import DSASpec
from dsabench.spec.run import RunSpec


def leader_of(spec: RunSpec, layer: int) -> int:
    """The layer whose indexer this one uses: the first of its group. Groups are made of layers of the same settings,
    first to last; in a hybrid stack layers of others may lie between."""
    attention = spec.attention
    assert isinstance(attention, DSASpec)
    if (size := attention.indexer.share_layers) == 1:
        return layer
    alike = [one for one in range(layer + 1) if spec.stack.at(one) == attention]
    place = len(alike) - 1
    return alike[place - place % size]
