"""Attention over paged keys and values. Knows tensors only."""
