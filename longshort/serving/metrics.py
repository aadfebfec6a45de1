"""What `/metrics` tells Prometheus. Names are stable: dashboards are built on them (docs/serving.md lists them)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from longshort.serving.admission import Gate
from longshort.serving.replies import hand_backs
from longshort.types import ROLES, Episode, LongShortError

OK, RESTARTING, FAILED = "ok", "restarting", "failed"
BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
PATHS = frozenset({"/", "/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics"})
"""Told apart; a label for every address that somebody tries would fill the memory."""
PATIENCE_S = 2.0
"""For the engines' counters; an engine that is being replaced keeps its last ones."""
OF_ENGINE = {
    "busy_s": ("longshort_engine_busy_seconds", "Seconds in which the engine was decoding"),
    "sampled_tokens": (
        "longshort_engine_sampled_tokens",
        "Tokens that the engine sampled, those of abandoned requests left out",
    ),
    "prompt_tokens": ("longshort_engine_prompt_tokens", "Tokens of all prompts given to the engine, one per message"),
    "cached_tokens": ("longshort_prefix_cache_hit_tokens", "Prompt tokens that the prefix cache held"),
    "restarts": ("longshort_engine_restarts", "Engine processes that were replaced"),
}


class Metrics(Collector):
    """Counts what passes; a scrape also asks the engines for their counters."""

    def __init__(
        self, gate: Gate, stats: Callable[[], Awaitable[Mapping[str, Mapping[str, float]]]], roles: Sequence[str]
    ):
        self._ask, self._asking = stats, None
        self._stats: Mapping[str, Mapping[str, float]] = {role: dict.fromkeys(OF_ENGINE, 0.0) for role in roles}
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("longshort_requests", "Requests answered", ("path", "status"), registry=registry)
        self._latency = Histogram(
            "longshort_request_seconds",
            "From a request to the end of its answer",
            ("path",),
            buckets=BUCKETS_S,
            registry=registry,
        )
        self._first_text = Histogram(
            "longshort_time_to_first_token_seconds",
            "From a streamed request to its first text",
            buckets=BUCKETS_S,
            registry=registry,
        )
        for name, text, value in (
            ("longshort_episodes_running", "Dialogues under way", lambda: gate.running),
            ("longshort_episodes_queued", "Dialogues that wait for a place", lambda: gate.waiting),
            (
                "longshort_draining",
                "1 while the server finishes what is running and takes nothing new",
                lambda: gate.draining,
            ),
        ):
            Gauge(name, text, registry=registry).set_function(value)
        self._episodes = Counter(
            "longshort_episodes", "Dialogues that ended, by the protocol's reason", ("stop",), registry=registry
        )
        self._tokens = Counter(
            "longshort_tokens", "Tokens sampled in dialogues that ended", ("role",), registry=registry
        )
        self._turns = Counter("longshort_turns", "Messages in dialogues that ended", ("role",), registry=registry)
        self._hand_backs = Counter(
            "longshort_hand_backs", "Messages with which short asked long to think again", registry=registry
        )
        for role in ROLES:
            self._tokens.labels(role), self._turns.labels(role)
        registry.register(self)

    def answered(self, path: str, status: int, seconds: float) -> None:
        path = path if path in PATHS else "other"
        self._requests.labels(path, status).inc()
        self._latency.labels(path).observe(seconds)

    def text_came(self, began: float) -> None:
        """The first piece of a streamed answer; `began` is time.monotonic() of the request."""
        self._first_text.observe(time.monotonic() - began)

    def ended(self, episode: Episode) -> None:
        self._episodes.labels(episode.stop).inc()
        self._hand_backs.inc(hand_backs([episode]))
        for turn in episode.turns:
            self._turns.labels(turn.role).inc()
            self._tokens.labels(turn.role).inc(len(turn.completion.token_ids))

    async def ask_engines(self) -> str:
        """Renew the engines' counters: OK; RESTARTING where one keeps silent, and its last stand; FAILED where one cannot start."""
        if self._asking is None:  # never cancelled: asking a dead engine replaces it, which must not stop half-way
            self._asking = asyncio.ensure_future(self._ask())
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
        """The exposition in Prometheus's text format."""
        await self.ask_engines()
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """The engines' counters; they restart from 0 with a replaced process, which Prometheus expects of counters."""
        for key, (name, text) in OF_ENGINE.items():
            family = CounterMetricFamily(name, text, labels=["role"])
            for role, stats in self._stats.items():
                family.add_metric([role], stats[key])
            yield family
