"""DSA over pools of tokens: its layer, indexer, pools, specification, and a kernel."""
