"""Nodes and clients made by hand, hostile ones among them: refused and counted, and nothing stops serving."""

from __future__ import annotations

import concurrent.futures
import random
import re
import time
import urllib.request
import zlib

import grpc
import numpy as np
import pytest
from by_hand import HandNode
from fleets import SPEC, queries, states, tokens, until
from prometheus_client.parser import text_string_to_metric_families

from edge_attention.core.errors import NotFound
from edge_attention.core.messages.attention import (
    AppendRequest,
    AttendRequest,
    ContextSpec,
    CreateContextRequest,
)
from edge_attention.core.messages.link import (
    PROTOCOL,
    Cancel,
    Credit,
    DownloadRequest,
    Heartbeat,
    HeartbeatAck,
    Register,
    UploadChunk,
    Uploaded,
)
from edge_attention.core.messages.program import Contribution, Program
from edge_attention.wire import checksum, services
from edge_attention.wire.codec import MESSAGE_LIMIT
from edge_attention.wire.link import CONNECT, DOWNLOAD, UPLOAD, from_node
from edge_attention.wire.methods import Method
from protos.edge_attention.v1 import attention_pb2, link_pb2

KEYS, VALUES = tokens(600)
pytestmark = pytest.mark.usefixtures("serving")
Code = grpc.StatusCode
METHODS = [value for value in vars(services).values() if isinstance(value, Method)]
METHODS += [CONNECT, DOWNLOAD, UPLOAD]


@pytest.fixture(scope="module")
def channel(shared):
    with grpc.insecure_channel(shared.address, options=[("grpc.max_send_message_length", -1)]) as channel:
        yield channel


def call(channel, method, *messages, timeout=120):
    """The responses of a call with these raw messages."""
    kind = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }[method.streams_request, method.streams_response](method.path)
    response = kind(iter(messages) if method.streams_request else messages[0], timeout=timeout)
    return list(response) if method.streams_response else [response]


def refused(channel, method, *messages):
    """The status and sentence with which the call ends."""
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, method, *messages)
    return caught.value.code(), caught.value.details()


def tried(channel, method, *messages):
    """The call is served or refused; it meets no defect."""
    try:
        call(channel, method, *messages)
    except grpc.RpcError as error:
        if error.code() in (Code.UNKNOWN, Code.INTERNAL) or not error.details():
            raise


def counted(shared, outcome):
    port = shared.child("aggregator").wait_for(r"metrics on \S+:(\d+)")[1]
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    found = re.search(rf'contributions_total{{outcome="{outcome}"}} (\S+)', text)
    return float(found[1]) if found else 0.0


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.path.split(".")[-1])
def test_garbage_on_every_method(channel, method):
    for garbage in (b"\xff" * 40, b"\x0a\xff\xff\xff\xff\x0f", bytes(range(256))):
        code, details = refused(channel, method, checksum.seal(garbage) if method.request.sealed else garbage)
        assert code is Code.INVALID_ARGUMENT, (garbage, code, details)
        if method.request.sealed:
            assert refused(channel, method, garbage)[0] is Code.DATA_LOSS
        assert details


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.path.split(".")[-1])
def test_an_empty_message_or_none_is_no_defect_of_ours(channel, method):
    attempts = [(b"",)] + ([()] if method.streams_request else [])
    for messages in attempts:
        tried(channel, method, *messages)


def test_messages_changed_in_any_byte_are_refused_or_served_but_break_nothing(channel, client, context):
    context.append(KEYS[:100], VALUES[:100])
    whole = {
        services.ATTEND: AttendRequest(context.name, queries(1), deadline_seconds=1.0, causal=True, window=5),
        services.APPEND: AppendRequest(context.name, "", KEYS[:2], VALUES[:2]),
        services.CREATE_CONTEXT: CreateContextRequest(ContextSpec(context.name, 4, 2, 16, 8)),
    }
    chosen = random.Random(0)
    for method, request in whole.items():
        data = method.request.encode(request)[: -checksum.TRAILER]  # with it, all would be damage and no more
        for _ in range(60):
            changed = bytearray(data)
            for _ in range(chosen.randrange(1, 4)):
                changed[chosen.randrange(min(len(changed), 120))] = chosen.randrange(256)
            cut = chosen.choice([len(changed), chosen.randrange(len(changed))])
            tried(channel, method, bytes(changed[:cut]))
    for made in client.contexts():
        if made.spec.name != context.name:
            client.context(made.spec.name).drop()


def test_a_tensor_whose_checksum_is_wrong(channel, context):
    context.append(KEYS, VALUES)
    message = attention_pb2.AttendRequest.FromString(
        services.ATTEND.request.encode(AttendRequest(context.name, queries(1)))
    )
    message.queries.shape[0] = 2
    code, details = refused(channel, services.ATTEND, message.SerializeToString())
    assert code is Code.DATA_LOSS
    assert "an attend request of" in details
    assert "has a wrong checksum: it was damaged on the way; send it again" in details
    message.queries.shape[0] = 1
    message.ClearField("checksum")
    message.queries.crc32 = zlib.crc32(message.queries.data) ^ 1
    code, details = refused(channel, services.ATTEND, message.SerializeToString())
    assert code is Code.DATA_LOSS
    assert details == "queries: the checksum is wrong, its bytes were damaged on the way; send it again"
    message.queries.crc32 ^= 1
    message.queries.data = message.queries.data[:-4]
    code, details = refused(channel, services.ATTEND, message.SerializeToString())
    assert code is Code.INVALID_ARGUMENT
    assert "takes 256 bytes, but 252 came" in details
    message.queries.shape[0] = 2**62
    code, details = refused(channel, services.ATTEND, message.SerializeToString())
    assert code is Code.INVALID_ARGUMENT


def test_a_message_past_the_limit(channel, context):
    for size in (MESSAGE_LIMIT + 1, 2 * MESSAGE_LIMIT + 1):
        code, details = refused(channel, services.ATTEND, b"\x0a" + bytes(size))
        assert code is Code.RESOURCE_EXHAUSTED
        assert f"{MESSAGE_LIMIT:,}" in details or "larger than max" in details


@pytest.fixture
def hostile(shared):
    with HandNode(shared.address, "hostile") as node:
        yield node


@pytest.fixture
def half_hostile(context, hostile):
    """300 tokens with node a, 300 with the hostile node."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        context.append(KEYS[:300], VALUES[:300], node="a")
        appending = pool.submit(context.append, KEYS[300:], VALUES[300:], node="hostile")
        hostile.accept_append(SPEC)
        appending.result(120)
        yield lambda **options: pool.submit(context.attend, queries(1), **options)


def partial(answer):
    assert not answer.exact
    assert answer.coverage == (range(0, 300),)
    assert np.isfinite(answer.out).all()
    assert set(answer.mass) == {"a"}


def test_a_node_that_folds_twice_is_refused_and_counted(shared, hostile, half_hostile):
    before = counted(shared, "late"), counted(shared, "duplicate")
    asked = half_hostile(deadline=120.0)
    program = hostile.next(Program)
    lse = {"lse": np.zeros((1, 4), np.float32)}
    hostile.answer(program, lse, final=False)
    hostile.answer(program, lse, final=False)
    for number, out in ((1, 2.0), (2, 99.0), (1, 99.0)):
        hostile.answer(program, {"out": hostile.attended(1, SPEC, out=out)["out"]}, number=number)
    answer = asked.result(120)
    assert answer.exact
    assert np.abs(answer.out).max() < 9, "what came second did not count"
    wanted = before[0] + 2, before[1] + 1
    # What came second may be looked at after the answer has left.
    until(lambda: (counted(shared, "late"), counted(shared, "duplicate")) == wanted, f"counts of {wanted}")


@pytest.mark.parametrize("poison", [{"out": np.nan}, {"out": np.inf}, {"lse": np.nan}, {"lse": np.inf}])
def test_numbers_that_are_none_are_not_averaged_in(hostile, half_hostile, poison):
    asked = half_hostile()
    hostile.answer(hostile.next(Program), hostile.attended(1, SPEC, **poison))
    answer = asked.result(120)
    partial(answer)
    assert "node 'hostile'" in answer.missing[0].reason


@pytest.mark.parametrize(
    "changed",
    [
        {"coverage": range(0, 600)},
        {"coverage": range(0)},
        {"shard": "another"},
        {"version": 7},
        {"number": 5},
        {"task_id": "x.0.1"},
    ],
)
def test_answers_to_something_else_do_not_count(hostile, half_hostile, changed):
    asked = half_hostile(deadline=4.0)
    program = hostile.next(Program)
    given = (program.task_id, program.shard, program.coverage, program.version)
    fields = dict(zip(("task_id", "shard", "coverage", "version"), given, strict=True))
    fields |= {"number": 0, "final": True, "tensors": hostile.attended(1, SPEC), **changed}
    hostile.send(Contribution(**fields))
    partial(asked.result(120))
    assert isinstance(hostile.next(Cancel), Cancel)


def unread(contribution):
    """As it was sent, and yet no contribution: its tensors are of a type that is none."""
    message = link_pb2.ConnectRequest.FromString(from_node.encode(contribution))
    message.contribution.tensors[0].data_type = 99
    message.ClearField("checksum")
    return checksum.seal(message.SerializeToString())


def test_damage_ends_the_stream_for_the_node_to_come_back_at_once(shared, client, hostile):
    sent = bytearray(from_node.encode(Contribution("x.0.1", "", range(0), 0, 0, {"x": KEYS[:1]})))
    sent[len(sent) // 2] ^= 4
    hostile.send(bytes(sent))
    error = hostile.ended()
    assert error.code() is Code.DATA_LOSS
    assert ("edge-attention-error", "Damaged") in error.trailing_metadata()
    assert states(client)["hostile"] == "ready", "for the moment"
    until(lambda: states(client)["hostile"] != "ready", "that it has not come back")


def test_messages_that_are_missing_end_the_stream_too(shared):
    with HandNode(shared.address, "hostile", beats=False) as hostile:
        hostile.send(Heartbeat(1, 0, 0, sent=2, received=1))  # Register, Credit
        assert hostile.next(HeartbeatAck) == HeartbeatAck(1, 1)
        hostile.send(Heartbeat(2, 0, 0, sent=4, received=2))
        error = hostile.ended()
    assert error.code() is Code.DATA_LOSS
    assert "has sent 4 messages, 3 have come" in error.details()


def test_a_node_of_the_release_before_is_told(shared):
    old = from_node.encode(Register(1, "0", "old", "1", "", "CPU", 1, 1))[: -checksum.TRAILER]
    with HandNode(shared.address, "old", first=old) as node:
        error = node.ended()
        assert error.code() is Code.FAILED_PRECONDITION
        assert f"speaks version 1 of the protocol, this aggregator speaks {PROTOCOL}" in error.details()
    bare = from_node.encode(Register(PROTOCOL, "0", "new", "1", "", "CPU", 1, 1))[: -checksum.TRAILER]
    with HandNode(shared.address, "new", first=bare) as node:
        assert node.ended().code() is Code.DATA_LOSS


def test_a_contribution_that_cannot_be_read_is_labelled_and_the_stream_goes_on(hostile, half_hostile):
    asked = half_hostile(deadline=120.0)
    program = hostile.next(Program)
    asked_for = (program.task_id, program.shard, program.coverage)
    hostile.send(unread(Contribution(*asked_for, 0, 0, hostile.attended(1, SPEC), final=True)))
    answer = asked.result(120)
    partial(answer)
    assert "data type 99" in answer.missing[0].reason
    asked = half_hostile()
    hostile.answer(hostile.next(Program), hostile.attended(1, SPEC))
    assert asked.result(120).exact


def test_contributions_that_cannot_be_read_give_their_credit_back(hostile, client):
    for _ in range(300):
        hostile.send(unread(Contribution("x.0.1", "", range(0), 0, 0, {"x": KEYS[:1]})))
    assert hostile.next(Credit).messages >= 256
    assert states(client)["hostile"] == "ready"


def test_a_node_cannot_answer_for_another(shared, context, hostile):
    context.append(KEYS, VALUES, node="a")
    exact = context.attend(queries(1))
    with HandNode(shared.address, "second") as victim, concurrent.futures.ThreadPoolExecutor(2) as pool:
        other = pool.submit(context.append, KEYS[:5], VALUES[:5], node="second")
        program = victim.next(Program)
        hostile.answer(program, hostile.attended(1, SPEC))
        hostile.send(unread(Contribution(program.task_id, "", range(0), 0, 0, {"x": KEYS[:1]})))
        time.sleep(0.3)
        assert not other.done()
        ends = np.full((2, 8), 3, np.float32)
        summary = {"key_norm": np.full(2, 10, np.float32), "value_min": -ends, "value_max": ends}
        victim.answer(program, summary)
        assert other.result(120).tokens == 5
    assert exact.exact


def test_a_node_that_registers_and_says_nothing_is_lost_and_costs_its_deadline(shared, client, context):
    with HandNode(shared.address, "silent", credit=False, beats=False) as silent:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            appending = pool.submit(context.append, KEYS, VALUES, node="silent")
            until(lambda: states(client)["silent"] == "lost", "the end of its lease")
            with pytest.raises(Exception, match=r"nothing was appended.*'silent' is lost"):
                appending.result(120)
        silent.ended()
        assert not any(isinstance(m, Program) for m in silent.received.queue), "it granted no credit"


def test_a_cancelled_call_revokes_its_tasks(shared, channel, hostile, half_hostile, context):
    data = services.ATTEND.request.encode(AttendRequest(context.name, queries(1)))
    asked = channel.unary_unary(services.ATTEND.path).future(data)
    program = hostile.next(Program)
    asked.cancel()
    assert hostile.next(Cancel).task_id == program.task_id


@pytest.mark.parametrize(
    ("first", "code", "said"),
    [
        (b"\xff\xff", Code.DATA_LOSS, "has no checksum"),
        (checksum.seal(b"\xff\xff"), Code.INVALID_ARGUMENT, "bytes are not a"),
        (Credit(1, 1), Code.FAILED_PRECONDITION, "the first message is Register"),
        (
            Register(99, "0", "n", "1", "", "CPU", 1, 1),
            Code.FAILED_PRECONDITION,
            "version 99",
        ),
        (Register(PROTOCOL, "0", "a/b", "1", "", "CPU", 1, 1), Code.INVALID_ARGUMENT, "is not a name"),
        (Register(PROTOCOL, "0", "a", "1", "", "CPU", 1, 1), Code.ALREADY_EXISTS, "connected already"),
        (Register(PROTOCOL, "0", "n", "", "", "CPU", 1, 1), Code.INVALID_ARGUMENT, "no instance"),
    ],
)
def test_who_may_not_register_is_told_why(shared, first, code, said):
    with HandNode(shared.address, "n", first=first) as node:
        error = node.ended()
        assert error.code() is code
        assert said in error.details()


def test_a_node_that_registers_twice_is_sent_away(hostile, client):
    hostile.send(Register(PROTOCOL, "0", "hostile", "hostile-1", "", "CPU", 1, 1))
    assert hostile.ended().code() is Code.INVALID_ARGUMENT
    until(lambda: states(client)["hostile"] != "ready", "its end")


def test_garbage_in_the_middle_of_a_stream_does_not_end_it(hostile, client):
    for garbage in (b"\xff" * 9, b"", bytes(range(200))):
        hostile.send(garbage)
    hostile.beat()
    time.sleep(0.3)
    assert states(client)["hostile"] == "ready"


def test_files_of_sessions_that_are_none(channel):
    download = DOWNLOAD.request.encode(DownloadRequest("guess", "0" * 64))
    assert refused(channel, DOWNLOAD, download)[0] is Code.NOT_FOUND
    upload = UPLOAD.request.encode(UploadChunk("guess", "0" * 64, 0, 1, b"x"))
    assert refused(channel, UPLOAD, upload)[0] is Code.NOT_FOUND
    wrong = services.BULK_UPLOAD.request.encode(UploadChunk("", "0" * 64, 0, 1, b"x"))
    assert refused(channel, services.BULK_UPLOAD, wrong)[0] is Code.DATA_LOSS
    for name in ("../../etc/passwd", "", "0" * 63, "A" * 64):
        request = services.BULK_DOWNLOAD.request.encode(DownloadRequest("", name))
        assert refused(channel, services.BULK_DOWNLOAD, request)[0] is Code.NOT_FOUND
        upload = services.BULK_UPLOAD.request.encode(UploadChunk("", name, 0, 0, b""))
        tried(channel, services.BULK_UPLOAD, upload)
    gap = services.BULK_UPLOAD.request.encode(UploadChunk("", "0" * 64, 5, 10, b"x"))
    (answer,) = call(channel, services.BULK_UPLOAD, gap)
    assert services.BULK_UPLOAD.response.decode(answer) == Uploaded(0), "how much is there"
    huge = services.BULK_UPLOAD.request.encode(UploadChunk("", "0" * 64, 0, 2**60, b"x"))
    assert refused(channel, services.BULK_UPLOAD, huge)[0] is Code.RESOURCE_EXHAUSTED


def test_a_node_hears_how_large_its_chunks_are_to_be(channel, hostile):
    question = UPLOAD.request.encode(UploadChunk(hostile.session, "0" * 64, 0, 10, b""))
    (answer,) = call(channel, UPLOAD, question)
    assert UPLOAD.response.decode(answer) == Uploaded(0, 1024 * 1024)


def test_metrics_of_both_daemons_are_prometheus_text(shared):
    for child, some in (
        ("aggregator", "edge_attention_aggregator_nodes"),
        ("a", "edge_attention_node_tasks"),
    ):
        port = shared.child(child).wait_for(r"metrics on \S+:(\d+)")[1]
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
        families = {family.name: family for family in text_string_to_metric_families(text)}
        assert some in families
        assert any(sample.value > 0 for sample in families[some].samples)
        for family in families.values():
            assert family.documentation
            if family.type == "histogram" and family.name.endswith("_seconds"):  # others count rows
                bounds = [s.labels["le"] for s in family.samples if s.name.endswith("_bucket")]
                assert bounds == [] or float(bounds[0]) <= 1e-4


def test_a_context_that_is_gone_is_not_found_by_hand(channel):
    data = services.ATTEND.request.encode(AttendRequest("nowhere", queries(1)))
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, services.ATTEND, data)
    assert caught.value.code() is Code.NOT_FOUND
    named = dict(caught.value.trailing_metadata())
    assert named["edge-attention-error"] == NotFound.__name__
