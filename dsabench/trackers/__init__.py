"""Experiment trackers: what is in a store, written for TensorBoard, Weights & Biases or MLflow to show.

Nothing that trains knows of them: they read a store, as any reader does, so that their failures are theirs alone.
A tracker is one file, imported when it is asked for; `names` lists them without importing anything.
"""
