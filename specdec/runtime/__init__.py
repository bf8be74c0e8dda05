"""Running transformers models over paged keys and values, without changing their code."""

from specdec.runtime.bypass import Bypass
from specdec.runtime.devices import device_of, free_bytes
from specdec.runtime.hook import PrefillRow
from specdec.runtime.node_batch import NodeBatch
from specdec.runtime.paged_model import PagedModel
from specdec.runtime.shards import Shards, shards_of, whole_embeddings
from specdec.runtime.source import Source
from specdec.runtime.stateful_model import StatefulModel
from specdec.runtime.states import Kinds
from specdec.runtime.text_tower import TextTower, TowerInputs
from specdec.runtime.visual_ids import visual_token_ids

__all__ = [
    "Bypass",
    "Kinds",
    "NodeBatch",
    "PagedModel",
    "PrefillRow",
    "Shards",
    "Source",
    "StatefulModel",
    "TextTower",
    "TowerInputs",
    "device_of",
    "free_bytes",
    "shards_of",
    "visual_token_ids",
    "whole_embeddings",
]
