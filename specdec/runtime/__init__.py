"""Running transformers models over paged keys and values, without changing their code."""

from specdec.runtime.hook import PrefillRow
from specdec.runtime.paged_model import NodeBatch, PagedModel

__all__ = ["NodeBatch", "PagedModel", "PrefillRow"]
