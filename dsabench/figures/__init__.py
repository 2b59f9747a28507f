"""The figures of `dsabench plot`. matplotlib is used without pyplot, so that nobody's global state is touched."""
