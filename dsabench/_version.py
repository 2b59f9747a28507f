"""The version of dsabench."""

__version__ = "0.7.0"
