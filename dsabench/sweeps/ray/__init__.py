"""Runs trained by the nodes of a Ray cluster."""
