"""Figures; matplotlib without pyplot, so that nobody's global state is touched."""
