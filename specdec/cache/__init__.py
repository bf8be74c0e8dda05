"""Paged keys and values: page accounting, and the tensors behind it."""

from specdec.cache.paged_kv import PagedKV
from specdec.cache.pages import OutOfPages, PageAllocator, page_key
from specdec.cache.sequence import PageView, SequenceKV

__all__ = ["OutOfPages", "PageAllocator", "PageView", "PagedKV", "SequenceKV", "page_key"]
