"""MiniMax Sparse Attention: blocks chosen by a learned index branch, for each group of query heads apart."""
