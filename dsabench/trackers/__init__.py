"""Experiment trackers: runs of a store, written for TensorBoard, Weights & Biases or MLflow to show.

They read a store like any other reader, and training knows nothing of them: their failures cannot end a run.
A tracker is one file, imported when it is asked for; `names` lists them without importing anything.
"""
