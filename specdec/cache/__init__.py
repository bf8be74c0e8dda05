"""Paged keys and values: page accounting, and the tensors behind it."""

from specdec.cache.paged_kv import PagedKV, PageView, SequenceKV
from specdec.cache.pages import OutOfPages, PageAllocator, page_key

__all__ = ["OutOfPages", "PageAllocator", "PageView", "PagedKV", "SequenceKV", "page_key"]
