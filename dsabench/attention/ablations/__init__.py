"""Selections without an indexer: the same model, schedule and k as DSA, with another choice of the k keys."""
