"""Paged keys and values: page accounting, and the tensors behind it."""

from specdec.cache.paged_kv import PagedKV, SequenceKV
from specdec.cache.pages import OutOfPages, PageAllocator

__all__ = ["OutOfPages", "PageAllocator", "PagedKV", "SequenceKV"]
