"""One attention layer, forward and backward, over lengths: dense attention, a sliding window and DSA, on one device.

`cases` and `sparse_cases` hold the implementations, `roofline` the least that a layer needs, `check` the comparison
with the reference, `timing` the stopwatch. `measure.bench` puts them together into the `document` that is printed,
written and plotted.
"""
