from __future__ import annotations

import json
import ssl
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))  # for the house

from ports import run
from text_port import text_port

from aggregator.observe.metrics import Metrics
from edge_attention.trust.tokens import parse_token
from tests.aggregator.inference.generation.local_sessions import random_decoder


@pytest.fixture(scope="module")
def decoder():
    return random_decoder()


@pytest.fixture
def made(decoder, tmp_path):
    """OpenAI's calls before a small decoder."""
    return text_port(tmp_path, decoder)


@pytest.fixture
def house(tmp_path):
    """Real trust in a folder of its own: its access, its tokens, and a client's TLS."""
    trust = pytest.importorskip("aggregator.trust.trust")
    from aggregator.trust.audit import Audit

    audit = Audit(tmp_path / "audit.jsonl")
    settings = trust.TrustSettings(bootstrap=tmp_path / "boot")
    made = trust.Trust(settings, tmp_path, "127.0.0.1", Metrics(), audit)
    tls = ssl.create_default_context(cafile=str(tmp_path / "boot" / "authority.pem"))
    tokens = {
        n: (tmp_path / "boot" / f"{n}-token").read_text().strip() for n in ("join", "viewer", "operator")
    }

    def audited():
        return [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]

    def revoke(token):
        registry = made.registry
        registry.revoke_token(token.split("_")[1], time.time())
        made.access.changed()

    def user():
        """A new token of the role user."""
        pin = parse_token(tokens["viewer"]).pin
        return made.registry.create_token("access", "user", pin, time.time(), name="ana").text

    def served(scenario, **more):
        serve = made.guard.serving
        run(scenario, access=made.access, tls=tls, audit=audit, serve=serve, **more)

    def notice():
        """What the aggregator does twice a second: calls of what was revoked end."""
        made.guard.changed()

    yield SimpleNamespace(
        run=served,
        user=user,
        notice=notice,
        audited=audited,
        revoke=revoke,
        **tokens,
    )
    made.close()
    audit.close()
