"""What is said of the way to the aggregator: name, port, protocol, health, clock, keepalive."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from edge_attention.core.messages.fleet import DescribeAggregatorResponse
from edge_attention.doctor.finding import Finding, duration, failed, ok, size, skipped, warning

CLOCK_WARNING, CLOCK_FAILED = 2.0, 60.0
"""Seconds two clocks may differ. A peer's token is good for minutes, a certificate from five minutes back."""
DISK_WARNING, DISK_FAILED = 0.1, 0.03
"""Shares of a disk that are left: below the second nothing more is committed soon."""

SLOW_CONNECT = 1.0


class Speaks(Enum):
    """What answers at a port."""

    TLS = "TLS"
    PLAINTEXT = "HTTP/2 without TLS"
    OTHER = "something else than HTTP/2"
    NOTHING = "nothing"


@dataclass(frozen=True)
class Port:
    """What was found at HOST:PORT. Seconds; `problem` says where it went wrong, in the system's words.

    `addresses` is empty if the name did not resolve, `connected` the first that took a connection.
    """

    host: str
    port: int
    addresses: tuple[str, ...] = ()
    resolve_seconds: float = 0.0
    connected: str = ""
    connect_seconds: float = 0.0
    refused: bool = False
    speaks: Speaks = Speaks.NOTHING
    http2: bool = False
    problem: str = ""

    @property
    def where(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class HttpAnswer:
    """What the aggregator's HTTP port answered when asked whether it is ready; status 0: nothing."""

    port: int
    status: int
    problem: str = ""


@dataclass(frozen=True)
class ClockReading:
    """Another machine's clock less this one's, in seconds, known to within `within`."""

    ahead: float
    within: float


def name(port: Port, *, proxied: bool = False) -> Finding:
    """Whether the aggregator's name resolves. `proxied`: gRPC leaves that to a proxy."""
    data = {"host": port.host, "addresses": list(port.addresses), "seconds": port.resolve_seconds}
    if not port.addresses and proxied:
        said = f"{port.host!r} does not resolve here; gRPC leaves that to the proxy"
        return skipped("name", "aggregator", said, **data)
    if not port.addresses:
        fix = "use the right name, add it to the DNS or /etc/hosts, or give the address in numbers"
        return failed("name", "aggregator", f"{port.host!r} does not resolve: {port.problem}", fix, **data)
    said = f"{port.host} is {', '.join(port.addresses[:4])}, found in {duration(port.resolve_seconds)}"
    if port.resolve_seconds > SLOW_CONNECT:
        fix = "look at this machine's DNS servers (/etc/resolv.conf): one of them does not answer"
        return warning("name", "aggregator", said, fix, **data)
    return ok("name", "aggregator", said, **data)


def reachable(port: Port, *, proxied: bool = False) -> Finding:
    """Whether its port takes connections. `proxied`: gRPC goes through a proxy, which alone must reach it."""
    data = {"port": port.port, "address": port.connected, "seconds": port.connect_seconds}
    if port.connected:
        said = f"{port.where} takes connections, in {duration(port.connect_seconds)}"
        if port.connect_seconds > SLOW_CONNECT:
            fix = "look for a lossy line or a firewall that drops the first packets on the way"
            return warning("port", "aggregator", said, fix, **data)
        return ok("port", "aggregator", said, **data)
    if proxied:
        said = (
            f"{port.where} cannot be reached but through the proxy: {port.problem or 'it does not resolve'}"
        )
        return skipped("port", "aggregator", said, **data)
    fix = (
        "start the aggregator there, or give --aggregator the port it listens on (it prints `listening on`)"
        if port.refused
        else "let TCP to that port through the firewalls on the way, or correct --aggregator"
    )
    return failed("port", "aggregator", f"{port.where} cannot be reached: {port.problem}", fix, **data)


def protocol(port: Port, *, tls: bool) -> Finding:
    """Whether both sides speak TLS, or neither does. `tls`: this client would."""
    data = {"speaks": port.speaks.value, "http2": port.http2, "tls": tls}
    said = f"{port.where} speaks {port.speaks.value}"
    if port.speaks in (Speaks.OTHER, Speaks.NOTHING):
        fix = "give --aggregator the gRPC port; the page and the metrics have another"
        return failed("protocol", "aggregator", f"{said}: {port.problem}", fix, **data)
    if port.speaks is Speaks.TLS and not port.http2:
        fix = "give --aggregator the gRPC port; a proxy between must offer HTTP/2 (ALPN h2)"
        return failed("protocol", "aggregator", f"{said}, and no HTTP/2 in it", fix, **data)
    if port.speaks is Speaks.TLS and not tls:
        fix = "give --token, --authority or --identity: without any of them a client speaks plaintext"
        return failed("protocol", "aggregator", f"{said}, this client would not", fix, **data)
    if port.speaks is Speaks.PLAINTEXT and tls:
        fix = "start the aggregator with --tls --state DIR, or leave out the token and the certificates"
        return failed("protocol", "aggregator", f"{said}, this client would speak TLS", fix, **data)
    return ok("protocol", "aggregator", f"{said}, and so does this client", **data)


def health(status: str, seconds: float, problem: str) -> Finding:
    """What the standard health service says."""
    data = {"status": status, "seconds": seconds}
    if status == "SERVING":
        return ok("health", "aggregator", f"SERVING, told in {duration(seconds)}", **data)
    if status:
        fix = "wait if it is starting or stopping, else read its log"
        return failed("health", "aggregator", f"it says {status}", fix, **data)
    fix = "read the aggregator's log; what answers at the port is not well, or not an aggregator"
    return failed("health", "aggregator", problem, fix, **data)


def http_port(answer: HttpAnswer) -> Finding:
    """Whether the page and the metrics can be had from here."""
    data = {"port": answer.port, "status": answer.status}
    if not answer.status:
        said = f"port {answer.port} cannot be reached from here: {answer.problem}"
        fix = "if Prometheus or a browser is to reach it from here, give the aggregator --metrics-host"
        return skipped("http port", "aggregator", said, fix, **data)
    if answer.status == 503:
        fix = "wait if it is starting or stopping, else read its log"
        return warning("http port", "aggregator", f"port {answer.port} says it is not ready", fix, **data)
    return ok("http port", "aggregator", f"port {answer.port} answers", **data)


def clock(subject: str, reading: ClockReading | None, of: str = "this box's") -> Finding:
    """Whether two clocks agree."""
    if reading is None:
        return skipped("clock", subject, "it does not tell its clock: its software is older")
    data = {"ahead_seconds": reading.ahead, "within_seconds": reading.within}
    way = "ahead of" if reading.ahead > 0 else "behind"
    said = f"its clock is {duration(abs(reading.ahead))} {way} {of}, known to {duration(reading.within)}"
    off = abs(reading.ahead) - reading.within
    fix = (
        "have both machines keep time by a server, as systemd-timesyncd or chrony does (timedatectl shows it)"
    )
    if off > CLOCK_FAILED:
        return failed("clock", subject, said, fix, **data)
    if off > CLOCK_WARNING:
        return warning("clock", subject, said, fix, **data)
    return ok("clock", subject, said, **data)


def software(about: DescribeAggregatorResponse | None, here: str, protocol: int) -> Finding:
    """Whether the aggregator and this box have the same release. `protocol`: this release's node link."""
    if about is None:
        fix = "install this release there too, then run the doctor again"
        return warning(
            "version", "aggregator", f"it is older than this doctor, which is of {here}", fix, here=here
        )
    data = {"software": about.software, "here": here, "protocol": about.protocol}
    said = f"release {about.software}, protocol {about.protocol}, up for {duration(about.uptime_seconds)}"
    if about.protocol != protocol:
        fix = "install the same release on both: nodes of this box's would be refused there"
        return failed("version", "aggregator", f"{said}; this box speaks protocol {protocol}", fix, **data)
    if about.software != here:
        fix = "install the same release on both"
        return warning("version", "aggregator", f"{said}; this box has {here}", fix, **data)
    return ok("version", "aggregator", said, **data)


def state_disk(about: DescribeAggregatorResponse) -> Finding | None:
    """Whether the disk of the aggregator's state has room; None: it does not tell."""
    if not about.disk_size:
        return None
    share = about.disk_free / about.disk_size
    said = (
        f"{size(about.disk_free)} of {size(about.disk_size)} are left on the disk of its state, {share:.0%}"
    )
    data = {"free": about.disk_free, "size": about.disk_size}
    fix = (
        "free space there: delete runs (edge-attention runs delete), undeploy models, or start the "
        "aggregator with --keep-runs, --keep-run-days or --keep-run-bytes; where df -h shows room see df -i, "
        "and whether the folder is there and mounted for writing"
    )
    if share < DISK_FAILED:
        return failed("disk", "aggregator", said, fix, **data)
    if share < DISK_WARNING:
        return warning("disk", "aggregator", said, fix, **data)
    return ok("disk", "aggregator", said, **data)


def keepalive(here: float, here_least: float, about: DescribeAggregatorResponse) -> Finding:
    """Whether each side pings less often than the other forbids, and often enough for a NAT table."""
    there, least = about.keepalive_seconds, about.least_ping_seconds
    data = {"here": here, "there": there, "least_here": here_least, "least_there": least}
    said = f"pings every {here:g} s from here, every {there:g} s from there"
    if here < least or there < here_least:
        fix = "install the same release on both: the side that pings too often is told GOAWAY and cut off"
        return failed(
            "keepalive", "aggregator", f"{said}; allowed every {max(least, here_least):g} s", fix, **data
        )
    return ok("keepalive", "aggregator", said, **data)


def idle(asked: float, survived: bool, after: float, problem: str) -> Finding:
    """Whether a stream on which nothing but keepalive moves lives for as long as was asked."""
    data = {"asked_seconds": asked, "survived": survived, "after_seconds": after}
    if not survived:
        fix = (
            "have the router or proxy between keep idle streams for a minute and more: pings come every 30 s"
        )
        return failed(
            "idle stream", "aggregator", f"it was cut after {duration(after)}: {problem}", fix, **data
        )
    if asked < 60:
        honest = "; too short to tell of NAT tables, --idle 120 would"
        return ok("idle stream", "aggregator", f"it lived for {duration(asked)}{honest}", **data)
    return ok("idle stream", "aggregator", f"it lived for {duration(asked)} with nothing but pings", **data)
