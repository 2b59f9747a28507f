"""The documentation: Markdown pages, shipped in the wheel and shown by `dsabench guide`."""
