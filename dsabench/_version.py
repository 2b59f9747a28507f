"""The version of dsabench."""

__version__ = "0.2.0"
