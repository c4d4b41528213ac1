"""Counters for Prometheus, read from the server when they are asked for."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from vdisk.errors import UnsupportedFeatureError, from_os_error
from vdisk.nbd.wire import Command
from vdisk.nbd_serving.listeners import check_port
from vdisk.nbd_serving.statistics import LATENCY_BOUNDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.core import Metric

    from vdisk.nbd_server import Server
    from vdisk.nbd_serving.statistics import CommandStatistics

_LABELS = ("export", "command")


class _Collector:
    """What ``/metrics`` shows; called in the thread of the HTTP server, and only reads."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        exports = dict(self._server.statistics)
        requests = CounterMetricFamily("nbd_requests", "Requests answered", labels=_LABELS)
        size = CounterMetricFamily("nbd_bytes", "Bytes they were about", labels=_LABELS)
        errors = CounterMetricFamily("nbd_errors", "Requests that failed", labels=_LABELS)
        refused = CounterMetricFamily(
            "nbd_refused_requests", "Requests that were not valid", labels=_LABELS[:1]
        )
        for name, statistics in exports.items():
            refused.add_metric((name,), statistics.refused)
            for command, counts in statistics.commands.items():
                labels = (name, _name(command))
                requests.add_metric(labels, counts.requests)
                size.add_metric(labels, counts.bytes)
                errors.add_metric(labels, counts.errors)
        yield from (requests, size, errors, refused)
        yield self._latencies()
        clients = GaugeMetricFamily("nbd_clients", "Connected clients")
        clients.add_metric((), len(self._server.clients))
        held = GaugeMetricFamily("nbd_bytes_in_flight", "Bytes of requests in flight")
        held.add_metric((), self._server.budget.bytes)
        yield from (clients, held)

    def _latencies(self) -> Metric:
        from prometheus_client.core import HistogramMetricFamily

        family = HistogramMetricFamily(
            "nbd_request_seconds", "From the request to its reply", labels=_LABELS
        )
        for name, statistics in dict(self._server.statistics).items():
            for command, counts in statistics.commands.items():
                family.add_metric((name, _name(command)), _buckets(counts), counts.seconds)
        return family


def _name(command: int) -> str:
    return Command(command).name.removeprefix("NBD_CMD_").lower()


def _buckets(counts: CommandStatistics) -> list[tuple[str, float]]:
    bounds = [*map(str, LATENCY_BOUNDS), "+Inf"]
    return list(zip(bounds, map(float, accumulate(counts.latencies)), strict=True))


def serve_metrics(server: Server, host: str, port: int) -> tuple[int, Callable[[], None]]:
    """Answer ``http://host:port/metrics``; the port, and what ends it.

    Raises :class:`UnsupportedFeatureError` without prometheus-client.
    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError as error:
        raise UnsupportedFeatureError(
            "--metrics needs the package 'prometheus-client': pip install 'vdisk[metrics]'"
        ) from error
    check_port(port)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(server))
    try:
        httpd, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise from_os_error(error, path=f"{host}:{port}", operation="serve metrics") from error

    def stop() -> None:
        httpd.shutdown()
        httpd.server_close()
        thread.join()

    return httpd.server_port, stop
