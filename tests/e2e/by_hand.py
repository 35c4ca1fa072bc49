"""A node made by hand: the node link's stream, and every message on it chosen by the test."""

from __future__ import annotations

import queue
import threading

import grpc
import numpy as np

from edge_attention.core.messages.link import PROTOCOL, Credit, Heartbeat, Register, Registered
from edge_attention.core.messages.program import Call, Contribution, Program
from edge_attention.wire.link import CONNECT, from_node, prepared_program, to_node
from edge_node.prepared import Prepared


class HandNode:
    """Registered as `name`; grants credit, and beats by itself.

    `received` holds what came, in order; of a call the program."""

    def __init__(self, address, name, *, first=None, credit=True, beats=True):
        self.name = name
        self._outgoing: queue.Queue = queue.Queue()
        self._prepared: dict[bytes, Prepared] = {}
        self.received: queue.Queue = queue.Queue()
        self._channel = grpc.insecure_channel(address)
        self.send(first or Register(PROTOCOL, "0", name, f"{name}-1", "", "CPU", 1, 1 << 30))
        self._call = self._channel.stream_stream(CONNECT.path)(iter(self._outgoing.get, None))
        self.error: grpc.RpcError | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._over = threading.Event()
        if first is None:
            self.session = self.next(Registered).session
            if credit:
                self.send(Credit(1 << 26, 1 << 10))
            if beats:
                threading.Thread(target=self._beat, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._over.set()
        self._call.cancel()
        self._outgoing.put(None)
        self._reader.join(60)
        self._channel.close()

    def send(self, message):
        self._outgoing.put(message if isinstance(message, bytes) else from_node.encode(message))

    def beat(self):
        self.send(Heartbeat(1, 0, 0))

    def _beat(self):
        while self._reader.is_alive() and not self._over.wait(0.5):
            self.beat()

    def next(self, kind, seconds=120):
        """The next message of `kind`; others are passed over."""
        while not isinstance(message := self.received.get(timeout=seconds), kind):
            pass
        return message

    def ended(self, seconds=120):
        """How the aggregator ended the stream."""
        self._reader.join(seconds)
        assert not self._reader.is_alive(), "the stream goes on"
        return self.error

    def _read(self):
        try:
            for data in self._call:
                message = to_node.decode(data)
                self.received.put(self._called(message) if isinstance(message, Call) else message)
        except grpc.RpcError as error:
            self.error = error

    def _called(self, call):
        if call.program not in self._prepared:
            program = prepared_program.decode(call.prepared)
            self._prepared[call.program] = Prepared(call.program, program, 0)
        return self._prepared[call.program].called(call)

    def answer(self, program, tensors=(), **changed):
        fields = {"number": 0, "tensors": dict(tensors), "final": True, **changed}
        asked = (program.task_id, program.shard, program.coverage, program.version)
        self.send(Contribution(*asked, **fields))

    def accept_append(self, spec):
        """Answer an append as if the tokens were stored, and values lay in [-3, 3]."""
        program = self.next(Program)
        ends = np.full((spec["key_heads"], spec["value_dim"]), 3, np.float32)
        norm = np.full(spec["key_heads"], 10, np.float32)
        self.answer(program, {"key_norm": norm, "value_min": -ends, "value_max": ends})

    def attended(self, count, spec, out=1.0, lse=0.0):
        """out and lse of those values, for `count` queries."""
        heads = spec["query_heads"]
        return {
            "out": np.full((count, heads, spec["value_dim"]), out, np.float32),
            "lse": np.full((count, heads), lse, np.float32),
        }
