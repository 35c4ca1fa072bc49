"""TrustService on the wire: its methods and their codecs."""

from __future__ import annotations

from edge_attention.core.messages.trust import EnrolRequest, EnrolResponse, RenewRequest, RenewResponse
from edge_attention.wire.codec import Codec
from edge_attention.wire.methods import Method, Service
from protos.edge_attention.v1 import trust_pb2

TRUST = Service("edge_attention.v1.TrustService")

ENROL = Method(
    TRUST,
    "Enrol",
    Codec[EnrolRequest](EnrolRequest, trust_pb2.EnrolRequest),
    Codec[EnrolResponse](EnrolResponse, trust_pb2.EnrolResponse, sealed=True),
    changes=True,
)
RENEW = Method(
    TRUST,
    "Renew",
    Codec[RenewRequest](RenewRequest, trust_pb2.RenewRequest),
    Codec[RenewResponse](RenewResponse, trust_pb2.RenewResponse, sealed=True),
    changes=True,
)
