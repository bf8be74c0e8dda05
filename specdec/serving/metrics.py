"""What Prometheus is told. Names are those of vLLM, with `specdec:` before them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from specdec.serving.status import EngineStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_LATENCIES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counts of one server, in a registry of its own.

    Args:
        stats: how the engine is doing.
    """

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_OfEngine(stats))
        self.first_token_seconds = self._histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token."
        )
        self.token_seconds = self._histogram(
            "inter_token_latency_seconds",
            "Between tokens; those of one step share what it took.",
            tuple(edge / 5 for edge in _LATENCIES[:11]),
        )
        self.request_seconds = self._histogram(
            "e2e_request_latency_seconds", "From a request's arrival to the end of an answer."
        )
        self._ended = Counter(
            "specdec:request_success",
            "Answers that ended, by why.",
            ["finished_reason"],
            registry=self._registry,
        )

    def ended(self, reason: str) -> None:
        """Count an answer that ended."""
        self._ended.labels(reason).inc()

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...] = _LATENCIES
    ) -> Histogram:
        return Histogram(f"specdec:{name}", text, buckets=buckets, registry=self._registry)


class _OfEngine(Collector):
    """Reads the engine's own counts when somebody asks."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """All of them, as of now."""
        stats = self._stats()
        done = stats.acceptance
        counters = {
            "spec_decode_num_drafts": (done.num_spec_steps, "Verifications of a draft."),
            "spec_decode_num_draft_tokens": (done.num_draft_tokens, "Tokens drafted."),
            "spec_decode_num_accepted_tokens": (
                done.num_accepted_draft_tokens,
                "Drafted tokens that were accepted.",
            ),
            "spec_decode_num_relaxed_tokens": (
                done.num_relaxed_tokens,
                "Of these, what lossless acceptance would have refused.",
            ),
            "prompt_tokens": (done.num_prompt_tokens, "Tokens of prompts, images included."),
            "generation_tokens": (done.num_generated_tokens, "Tokens of answers."),
            "prefix_cache_queries": (done.num_prompt_tokens, "Tokens looked for in the cache."),
            "prefix_cache_hits": (done.num_cached_tokens, "Tokens found there."),
            "num_preemptions": (done.num_preemptions, "Answers that gave their pages up."),
        }
        for name, (count, text) in counters.items():
            yield CounterMetricFamily(f"specdec:{name}", text, value=count)
        per_position = CounterMetricFamily(
            "specdec:spec_decode_num_accepted_tokens_per_pos",
            "Verifications that accepted a drafted token at this depth.",
            labels=["position"],
        )
        for position, count in enumerate(done.num_accepted_tokens_per_pos):
            per_position.add_metric([str(position)], count)
        yield per_position
        yield from _gauges(stats)


def _gauges(stats: EngineStats) -> Iterator[Metric]:
    share = stats.pages_taken / stats.pages_limit if stats.pages_limit else 0.0
    gauges = {
        "num_requests_running": (
            stats.running + stats.prefilling,
            "Requests that are computed.",
        ),
        "num_requests_waiting": (stats.waiting, "Requests that wait."),
        "kv_cache_usage_perc": (share, "Share of the pages of keys that requests hold; 1 is all."),
        "kv_cache_bytes": (stats.kv_bytes, "What keys and values take."),
    }
    for name, (value, text) in gauges.items():
        yield GaugeMetricFamily(f"specdec:{name}", text, value=value)
