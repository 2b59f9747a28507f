"""One run trained by several processes, the ranks, on equal shares of every batch."""
