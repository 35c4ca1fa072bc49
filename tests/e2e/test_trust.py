"""Trust between real processes over real TLS: who is let in, and who is refused with which words."""

from __future__ import annotations

import pytest
from fleets import SPEC, exact, queries, tokens
from trusted import TrustedFleet

KEYS, VALUES = tokens(700)
ASKED = queries(3)


@pytest.fixture(scope="module")
def trusted(tmp_path_factory):
    with TrustedFleet(tmp_path_factory.mktemp("trusted")) as fleet:
        fleet.trusted_node("a", wait=False)
        fleet.trusted_node("b", wait=False)
        fleet.wait_ready("a")
        fleet.wait_ready("b")
        yield fleet


def test_nodes_join_by_token_and_answer_over_tls(trusted):
    with trusted.client() as client:
        context = client.create_context("memory", **SPEC)
        context.append(KEYS[:300], VALUES[:300], node="a")
        context.append(KEYS[300:], VALUES[300:], node="b")
        exact(context.attend(ASKED), ASKED, KEYS, VALUES)
        context.drop()
    assert trusted.audited("enrolled", subject="node/a")["serial"]
    assert trusted.audited("registered", subject="node/b")["releases"] == []
    assert trusted.audited("context_dropped")["subject"] == "operator/bootstrap-operator"
