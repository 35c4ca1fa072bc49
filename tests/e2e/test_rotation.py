"""Issue 4, show 4: certificates of seconds, dozens of rotations, no query dropped. Nothing here measures "
"time."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest
from fleets import SPEC, exact, queries, tokens
from trusted import TrustedFleet

from edge_attention import Client, Unauthenticated
from edge_attention.core.messages.link import PROTOCOL, Register
from edge_attention.trust.bootstrap import shown_chain
from edge_attention.trust.certificates import serial
from edge_attention.trust.dial import Dial
from edge_attention.trust.enrol import enrol
from edge_attention.trust.identity import IdentityFolder
from edge_attention.trust.tokens import parse_token
from edge_attention.wire.link import CONNECT

KEYS, VALUES = tokens(400)
ASKED = queries(2)
ROTATIONS = 8
"""Of each: the server, two nodes, a client. Some thirty in all; at two minutes each, an hour's worth."""


def test_dozens_of_rotations_drop_no_query(tmp_path):
    with TrustedFleet(tmp_path, "--certificate-seconds", "9") as fleet:
        for name in ("a", "b"):
            fleet.trusted_node(name, wait=False)
        for name in ("a", "b"):
            fleet.wait_ready(name)
        token = parse_token(fleet.make_token("--role", "operator", "--join", "--name", "eve")["token"])
        enrol(fleet.address, token, IdentityFolder(tmp_path / "eve"))
        servers = {serial(shown_chain(fleet.address)[0])}
        asked = 0
        with Client(fleet.address, identity=tmp_path / "eve") as lasting:
            context = lasting.create_context("memory", **SPEC)
            context.append(KEYS[:200], VALUES[:200], node="a")
            context.append(KEYS[200:], VALUES[200:], node="b")
            while min(len(servers) - 1, *renewals(fleet).values()) < ROTATIONS:
                # Over the connection from the beginning, and over a new one.
                exact(context.attend(ASKED), ASKED, KEYS, VALUES)
                with Client(fleet.address, identity=tmp_path / "eve") as fresh:
                    exact(fresh.context("memory").attend(ASKED), ASKED, KEYS, VALUES)
                servers.add(serial(shown_chain(fleet.address)[0]))
                asked += 2
        assert asked > 2 * ROTATIONS
        lines = fleet.audit()
        # The nodes' streams have been the same from the first to the last.
        assert Counter(line["subject"] for line in lines if line["event"] == "registered") == {
            "node/a": 1,
            "node/b": 1,
        }
        assert not [line for line in lines if line["event"] in ("resumed", "refused")], lines


def renewals(fleet):
    lines = [json.loads(line) for line in fleet.audit_file.read_text().splitlines()]
    found = Counter(line["subject"] for line in lines if line["event"] == "renewed")
    return {name: found[name] for name in ("node/a", "node/b", "operator/eve")}


def test_a_stream_does_not_outlive_a_certificate_that_nobody_renews(tmp_path):
    # It says nothing once it has registered: that is not to end before.
    with TrustedFleet(tmp_path, "--certificate-seconds", "6", "--lease", "60") as fleet:
        token = parse_token(fleet.token("join"))
        identity = enrol(fleet.address, token, IdentityFolder(tmp_path / "x"), "x")

        async def scenario():
            caller = Dial(fleet.address, identity=identity).open_caller()
            stream = caller.duplex(CONNECT)
            await stream.write(Register(PROTOCOL, "0", "x", "i", "", "CPU", 1, 1 << 20, (), (), ()))
            try:
                with pytest.raises(Unauthenticated, match=r"'x' ended at .*, during the call"):
                    async for _ in stream:
                        pass
            finally:
                await caller.close()

        asyncio.run(scenario())
        assert fleet.audited("refused", "during the call", subject="node/x")
