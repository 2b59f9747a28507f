"""The HTML report: the answer of a store with everything it rests on, in one file."""
