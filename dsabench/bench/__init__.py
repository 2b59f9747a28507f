"""The bench: one attention layer, forward and backward, timed over lengths: dense, a sliding window, DSA.

`cases` and `sparse_cases` hold the implementations, `roofline` the FLOPs and bytes that they need, `check` the test of
their results, `timing` the stopwatch. `measure.bench` puts them together into the `document` that is printed, written
and plotted.
"""
