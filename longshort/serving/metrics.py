"""What `/metrics` exposes to Prometheus. Names are stable, for dashboards use them (list: docs/serving.md)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from longshort.dialogue.turns import count_hand_backs
from longshort.serving.admission import Gate
from longshort.types import ROLES, Episode, LongShortError

OK, RESTARTING, FAILED = "ok", "restarting", "failed"
BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
PATHS = frozenset(
    ("/", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/models", "/health", "/metrics")
)
"""Paths with a label of their own; one for every address that somebody tries would fill the memory."""
PATIENCE_S = 2.0
"""How long a scrape waits for the engines' counters; an engine that is being replaced keeps its last ones."""
ENGINE_COUNTERS = {
    "busy_s": ("longshort_engine_busy_seconds", "Seconds in which the engine was decoding"),
    "sampled_tokens": ("longshort_engine_sampled_tokens", "Sampled tokens, without those of abandoned requests"),
    "prompt_tokens": ("longshort_engine_prompt_tokens", "Tokens of all prompts given to the engine, one per message"),
    "cached_tokens": ("longshort_prefix_cache_hit_tokens", "Prompt tokens that the prefix cache held"),
    "restarts": ("longshort_engine_restarts", "Engine processes that were replaced"),
}


class Metrics(Collector):
    """Counts requests and episodes; a scrape also asks the engines for their counters."""

    def __init__(
        self, gate: Gate, stats: Callable[[], Awaitable[Mapping[str, Mapping[str, float]]]], roles: Sequence[str]
    ):
        self._ask_engines = stats
        self._asking: asyncio.Future[Mapping[str, Mapping[str, float]]] | None = None
        self._stats: Mapping[str, Mapping[str, float]] = {role: dict.fromkeys(ENGINE_COUNTERS, 0.0) for role in roles}
        self._registry = registry = CollectorRegistry()
        registry.register(self)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"longshort_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"longshort_{name}", text, labels, buckets=BUCKETS_S, registry=registry)

        def gauge(name: str, text: str, value: Callable[[], float]) -> None:
            Gauge(f"longshort_{name}", text, registry=registry).set_function(value)

        self._requests = counter("requests", "Requests answered", "path", "status")
        self._latency = histogram("request_seconds", "From a request to the end of its answer", "path")
        self._first_text = histogram("time_to_first_token_seconds", "From a streamed request to its first text")
        gauge("episodes_running", "Dialogues under way", lambda: gate.running)
        gauge("episodes_queued", "Dialogues that wait for a place", lambda: gate.waiting)
        gauge("draining", "1 while the server finishes what runs and takes nothing new", lambda: gate.draining)
        self._episodes = counter("episodes", "Dialogues that ended, by the protocol's reason", "stop")
        self._tokens = counter("tokens", "Tokens sampled in dialogues that ended", "role")
        self._turns = counter("turns", "Messages in dialogues that ended", "role")
        self._hand_backs = counter("hand_backs", "Messages with which short asked for more thought")
        for role in ROLES:  # so that both are exposed from the start
            self._tokens.labels(role)
            self._turns.labels(role)

    def answered(self, path: str, status: int, seconds: float) -> None:
        path = path if path in PATHS else "other"
        self._requests.labels(path, status).inc()
        self._latency.labels(path).observe(seconds)

    def first_text(self, began: float) -> None:
        """Count the first piece of a streamed answer; `began` is time.monotonic() of the request."""
        self._first_text.observe(time.monotonic() - began)

    def ended(self, episode: Episode) -> None:
        self._episodes.labels(episode.stop).inc()
        self._hand_backs.inc(count_hand_backs(episode))
        for turn in episode.turns:
            self._turns.labels(turn.role).inc()
            self._tokens.labels(turn.role).inc(len(turn.completion.token_ids))

    async def ask_engines(self) -> str:
        """Renew the engines' counters; return OK, RESTARTING if an engine is silent, FAILED if one cannot start."""
        if self._asking is None:  # never cancelled: asking a dead engine replaces it, which must not stop half-way
            self._asking = asyncio.ensure_future(self._ask_engines())
        await asyncio.wait([self._asking], timeout=PATIENCE_S)
        if not self._asking.done():
            return RESTARTING
        asked, self._asking = self._asking, None
        try:
            self._stats = asked.result()
        except LongShortError:
            return FAILED
        return OK

    async def page(self) -> bytes:
        """Return the metrics in Prometheus's text format."""
        await self.ask_engines()
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the engines' counters; a replaced process begins at 0 again, which Prometheus expects of counters."""
        for key, (name, text) in ENGINE_COUNTERS.items():
            family = CounterMetricFamily(name, text, labels=["role"])
            for role, stats in self._stats.items():
                family.add_metric([role], stats[key])
            yield family
