"""DeepSeek Sparse Attention: the layer, its lightning indexer, and the backends that compute it."""
