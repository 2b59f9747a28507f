"""One attention layer, forward and backward, over lengths: dense attention, a sliding window and DSA, on one device.

`cases` and `sparse_cases` say what is timed, `cost` what it needs, `check` that it is right, `timing` how long it
takes; `measure.bench` puts them together into the `document` that is printed, written and plotted.
"""
