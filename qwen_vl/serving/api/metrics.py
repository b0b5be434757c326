"""What a server counts and times, in the text format of Prometheus."""

from collections.abc import Iterable
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

PREFIX = "qwen_vl_"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
STATS = {
    "running": "requests that have a token and are not done",
    "waiting": "requests without a token yet",
    "prompt_tokens": "tokens of prompts that the engine has taken",
    "generated_tokens": "tokens that the engine has generated",
    "images_used": "images whose vectors are kept",
    "images": "images whose vectors there is room for",
    "pages_used": "pages of keys and values in use",
    "pages": "pages of keys and values in all",
}
TOTALS = frozenset({"prompt_tokens", "generated_tokens"})


class Engine(Protocol):
    """What the metrics ask of an engine. `stats` returns a NamedTuple of numbers."""

    @property
    def alive(self) -> bool:
        """Return whether it can answer."""

    def stats(self) -> Any:
        """Return its numbers at this moment."""


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(engine))

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(PREFIX + name, text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(PREFIX + name, text, registry=self.registry, buckets=buckets)

        self.http_requests = counter("http_requests", "answered requests", "path", "method", "status")
        self.finished = counter("choices_finished", "answers by their reason to end", "model", "finish_reason")
        self.prompt_tokens = counter("prompt_tokens", "tokens of prompts, images included", "model")
        self.cached_tokens = counter("cached_prompt_tokens", "prompt tokens whose keys and values were reused", "model")
        self.generated_tokens = counter("generated_tokens", "tokens of answers", "model")
        self.images_read = counter("images_read", "images of requests that were read")
        self.images_refused = counter("images_refused", "images of requests that were refused", "reason")
        self.canceled = counter("requests_canceled", "chat requests whose client went away")
        self.first_token = histogram("time_to_first_token_seconds", "from the request to its first token", SECONDS)
        self.token = histogram("time_per_token_seconds", "of the tokens after the first, a mean of each", TOKEN_SECONDS)
        self.whole = histogram("request_seconds", "from the request to the end of its answer", SECONDS)

    def text(self) -> bytes:
        """Return all metrics as text."""
        return generate_latest(self.registry)


class EngineCollector:
    """The state of the engine at the moment when it is asked for."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def collect(self) -> Iterable[Metric]:
        """Yield a counter for each total of the engine, and a gauge for each other number of its stats."""
        yield GaugeMetricFamily(f"{PREFIX}engine_alive", "1 while the engine can answer", value=self.engine.alive)
        for name, value in self.engine.stats()._asdict().items():
            kind = CounterMetricFamily if name in TOTALS else GaugeMetricFamily
            yield kind(f"{PREFIX}engine_{name}", STATS[name], value=value)
