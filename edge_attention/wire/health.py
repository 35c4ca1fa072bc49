"""The standard health service (grpc.health.v1), as bytes: no generated code for two numbers."""

from __future__ import annotations

from enum import Enum

from edge_attention.wire.codec import Codec
from edge_attention.wire.methods import Method, Service


class Serving(Enum):
    """The service's answers. UNKNOWN is also what cannot be read."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


class _Request(Codec[str]):
    """HealthCheckRequest: the service asked for is field 1; empty is the server as a whole."""

    def __init__(self) -> None:
        pass

    def encode(self, value: str) -> bytes:
        text = value.encode()
        return bytes([0x0A, len(text)]) + text if text else b""  # services here have short names

    def decode(self, data: bytes, sealed: bool | None = None) -> str:
        return data[2:].decode(errors="replace")


class _Response(Codec[Serving]):
    """HealthCheckResponse: field 1 is the status."""

    def __init__(self) -> None:
        pass

    def encode(self, value: Serving) -> bytes:
        return bytes([0x08, value.value]) if value.value else b""

    def decode(self, data: bytes, sealed: bool | None = None) -> Serving:
        known = len(data) == 2 and data[0] == 0x08 and data[1] in {status.value for status in Serving}
        return Serving(data[1]) if known else Serving.UNKNOWN


HEALTH = Service("grpc.health.v1.Health")
CHECK = Method(HEALTH, "Check", _Request(), _Response())
WATCH = Method(HEALTH, "Watch", _Request(), _Response(), streams_response=True)
