"""Metrics of several processes as those of one server, every figure with its replica's name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector


def merged(texts: Mapping[str, bytes]) -> bytes:
    """One text of the texts of replicas.

    Args:
        texts: in Prometheus' format, by the name of who wrote them.
    """
    registry = CollectorRegistry()
    registry.register(_Merged(texts))
    return generate_latest(registry)


class _Merged(Collector):
    def __init__(self, texts: Mapping[str, bytes]) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        """Families, each with the samples of all replicas."""
        families: dict[str, Metric] = {}
        for replica, text in self._texts.items():
            for told in text_string_to_metric_families(text.decode()):
                new = Metric(told.name, told.documentation, told.type)
                family = families.setdefault(told.name, new)
                for sample in told.samples:
                    labels = {**sample.labels, "replica": replica}
                    family.add_sample(sample.name, labels, sample.value)
        yield from families.values()
