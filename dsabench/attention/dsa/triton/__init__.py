"""DSA that is really sparse: Triton kernels for training whose cost and memory follow the selection, not L x L.

`top_k` selects, `attend` attends over the selection, `kl` and `kl_dense` teach the indexer. Each is a torch.library
custom op with a fake kernel and a registered gradient, so torch.compile and CUDA graphs take them; none waits for the
host. `reference` says what they compute. Importing a module of this package imports Triton; importing this does not.

A program of the attention or of the KL loss is one query (all heads of a KV group at once), because a query's keys are
its own, or a group of neighbours whose keys are largely the same: `unions` finds out which.
Sums into a key from many queries go through atomics; see `accumulate`.
"""
