"""DeepSeek-V4's attention over compressed entries: CSA, and what HCA shares with it."""
