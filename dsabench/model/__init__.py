"""The language model around the attention, free of infrastructure."""
