"""Without our client, and without our code: reflection, health, and an Attend composed from the .proto."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
from fleets import SPEC, queries, tokens, truth
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

SERVICES = {"AttentionService", "BulkService", "EdgeLinkService", "FleetService", "TrainingService"}
FLOAT32 = 1


class Reflected:
    """Calls made of nothing but what the server says of itself."""

    def __init__(self, channel):
        self.channel = channel
        self.database = ProtoReflectionDescriptorDatabase(channel)
        self.pool = descriptor_pool.DescriptorPool(self.database)

    def __call__(self, service, name, **fields):
        method = self.pool.FindServiceByName(f"edge_attention.v1.{service}").methods_by_name[name]
        request = message_factory.GetMessageClass(method.input_type)(**fields)
        response = message_factory.GetMessageClass(method.output_type)
        path = f"/edge_attention.v1.{service}/{name}"
        kind = self.channel.stream_unary if method.client_streaming else self.channel.unary_unary
        call = kind(path, lambda message: message.SerializeToString(), response.FromString)
        return call(iter([request]) if method.client_streaming else request, timeout=120)


@pytest.fixture(scope="module")
def reflected(shared):
    with grpc.insecure_channel(shared.address) as channel:
        yield Reflected(channel)


def tensor(array):
    return {"data_type": FLOAT32, "shape": array.shape, "data": array.tobytes()}


def array(message):
    return np.frombuffer(message.data, np.float32).reshape(message.shape)


def test_reflection_lists_the_services_and_their_methods(reflected):
    listed = set(reflected.database.get_services())
    assert {f"edge_attention.v1.{name}" for name in SERVICES} <= listed
    assert {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} <= listed
    attention = reflected.pool.FindServiceByName("edge_attention.v1.AttentionService")
    assert "Attend" in attention.methods_by_name


def test_the_open_inference_protocol_is_told_of_by_its_own_names(reflected):
    service = reflected.pool.FindServiceByName("inference.GRPCInferenceService")
    method = service.methods_by_name["ServerMetadata"]
    response = message_factory.GetMessageClass(method.output_type)
    call = reflected.channel.unary_unary(f"/{service.full_name}/{method.name}", None, response.FromString)
    assert call(b"", timeout=120).name == "edge-attention"


@pytest.mark.parametrize("service", ["", *(f"edge_attention.v1.{name}" for name in sorted(SERVICES))])
def test_health_says_serving(reflected, service):
    stub = health_pb2_grpc.HealthStub(reflected.channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=120)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_health_does_not_know_what_is_not_there(reflected):
    stub = health_pb2_grpc.HealthStub(reflected.channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="nothing"), timeout=120)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_context_is_made_filled_and_attended_to(reflected):
    keys, values = tokens(900)
    asked = queries(3)
    reflected("AttentionService", "CreateContext", spec={"name": "reflected", **SPEC})
    try:
        appended = reflected(
            "AttentionService", "Append", context="reflected", keys=tensor(keys), values=tensor(values)
        )
        assert (appended.tokens.start, appended.tokens.stop) == (0, 900)
        answer = reflected("AttentionService", "Attend", context="reflected", queries=tensor(asked))
        out, lse = truth(asked, keys, values)
        assert answer.exact
        assert [(r.start, r.stop) for r in answer.coverage] == [(0, 900)]
        np.testing.assert_allclose(array(answer.out), out, atol=1e-5)
        np.testing.assert_allclose(array(answer.lse), lse, atol=1e-5)
        np.testing.assert_allclose(sum(array(part.mass) for part in answer.mass), 1, atol=1e-5)
        with pytest.raises(grpc.RpcError) as caught:
            reflected("AttentionService", "Attend", context="reflected", queries=tensor(asked), window=0)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == (
            "window is 0; a query sees at least its own position: give 1 or more"
        )
    finally:
        reflected("AttentionService", "DropContext", context="reflected")


def test_the_fleet_is_listed(reflected):
    nodes = reflected("FleetService", "ListNodes").nodes
    assert {"a", "b"} <= {node.name for node in nodes}
