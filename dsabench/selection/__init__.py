"""The tokens that a trained run selects: captured, in numbers, as a figure and as a page."""
