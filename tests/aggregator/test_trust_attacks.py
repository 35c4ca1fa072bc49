"""What an attacker tried: with what a peer showed, with what a stranger may send, with files that are gone."""

from __future__ import annotations

import pytest
from trust_house import in_house

from edge_attention.core.errors import FailedPrecondition, PermissionDenied
from edge_attention.trust.certificates import load_der, new_key


def test_an_assertion_that_was_caught_gets_no_certificate_for_another_key(tmp_path):
    def inside(house):
        node = house.enrol(house.token(), "a")
        caught, evil = house.assertion(node), new_key()
        with pytest.raises(PermissionDenied, match=r"not for the key of the certificate of node 'a'"):
            house.renew(caught, evil)
        (line,) = house.audited("refused")
        assert (line["subject"], line["method"]) == ("node/a", "TrustService.Renew")
        assert "127.0.0.1" in line["peer"]
        renewed = load_der(house.renew(caught, node.key).certificate, "certificate")
        assert renewed.public_key() == node.key.public_key()
        assert len(house.audited("renewed")) == 1
        with pytest.raises(FailedPrecondition, match="an access token has none"):
            house.renew(house.token("access", "viewer").text, node.key)
        assert len(house.audited("refused")) == 2

    in_house(tmp_path, inside)
