"""The version of dsabench."""

__version__ = "0.6.0"
