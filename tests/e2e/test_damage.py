"""Networks that flip bits, without TLS: nothing wrong is taken, nothing ends, nothing waits in vain."""

from __future__ import annotations

import labs
import numpy as np
import pytest
import schools
from fleets import SPEC, Fleet, exact, queries, tokens
from labs import LABS
from proxy import Flip, Pass, Proxy
from schools import Schools

from edge_attention import Client
from edge_attention.core.messages.training import LocalSpec, OptimizerSpec, RunState

MESSAGES = Flip(every=40_000, messages=True)
"""Damage that only a checksum finds: HTTP/2 itself stays whole."""

ANYWHERE = Flip(every=30_000)
"""Frames, headers and pings too: connections end, or stall until they are missed."""


def dialled(proxy):
    return ("--aggregator", proxy.address, "--threads", "1")


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A fleet whose nodes a and b, and a client, are behind proxies: the nodes', the client's, the client."""
    with (
        Fleet(tmp_path_factory.mktemp("damage"), "--lease", "3") as fleet,
        Proxy(fleet.address, seed=1) as near,
        Proxy(fleet.address, seed=2) as far,
        Client(far.address) as client,
    ):
        fleet.nodes("a", "b", flags=dialled(near))
        yield near, far, client


def test_attends_and_appends_are_exact_and_none_is_late(house):
    near, far, client = house
    context = client.create_context("damaged", **SPEC)
    keys, values = tokens(1500)
    for proxy in (near, far):
        proxy.set_mode(MESSAGES)
    try:
        for turn in range(60):
            part = slice(turn * 25, turn * 25 + 25)
            context.append(keys[part], values[part], node="ab"[turn % 2])
            asked = queries(8, seed=turn)
            answer = context.attend(asked, deadline=120.0)
            exact(answer, asked, keys[: part.stop], values[: part.stop])
        assert context.describe().tokens == 1500, "each append once"
        for proxy in (near, far):
            assert proxy.flipped["up"] > 0
            assert proxy.flipped["down"] > 0
        assert sum((*near.flipped.values(), *far.flipped.values())) >= 10
    finally:
        for proxy in (near, far):
            proxy.set_mode(Pass())
        context.drop()


def test_bulk_goes_on_where_it_was(house):
    """4 MiB there and back: chunks of it come damaged, and what was under way with them comes again."""
    near, _, client = house
    before = dict(near.carried)
    near.set_mode(Flip(3_000_000, messages=True, least=100_000))
    try:
        for _ in range(5):
            client.probe("a", round_trips=1, size=4 * 1024 * 1024)
    finally:
        near.set_mode(Pass())
    assert near.flipped["up"] > 0
    assert near.flipped["down"] > 0
    carried = {way: near.carried[way] - before[way] for way in before}
    assert max(carried.values()) < 4 * 5 * 4 * 1024 * 1024


def test_a_fusion_run_ends_where_it_would_have_ended(tmp_path):
    with (
        Fleet(tmp_path, "--lease", "3", state=True) as fleet,
        Proxy(fleet.address, seed=3) as proxy,
        fleet.client() as client,
    ):
        files, planned = labs.write(tmp_path), client.plan(labs.job(40))
        for lab in LABS:
            released = labs.releases(client, lab, planned)
            fleet.start_node(lab, *dialled(proxy), data=files[lab], allow_release=released, wait=False)
        for lab in LABS:
            fleet.wait_ready(lab)
        whole = client.train(labs.job(40))
        wanted = list(whole)
        for mode, least in ((MESSAGES, 5), (ANYWHERE, 1)):
            before = sum(proxy.flipped.values())
            proxy.set_mode(mode)
            run = client.train(labs.job(40))
            rounds = list(run)
            proxy.set_mode(Pass())
            assert sum(proxy.flipped.values()) - before >= least
            assert run.describe().state is RunState.FINISHED
            assert [r.number for r in rounds] == list(range(1, 41))
            assert max(r.seconds["all"] for r in rounds) < 250
            np.testing.assert_allclose([r.loss for r in rounds], [r.loss for r in wanted], rtol=1e-4)
            final = run.parameters()
            for name, array in whole.parameters().items():
                np.testing.assert_allclose(final[name], array, atol=1e-4, err_msg=name)


def test_a_federated_run_ends_with_the_same_bits(tmp_path):
    names = ("a", "b", "c")
    local = LocalSpec(OptimizerSpec("sgd", {"lr": 0.1}), batch=8, steps=20)

    def job():
        return schools.job(12, nodes=names, local=local)

    with Schools(tmp_path, "--lease", "3", names=names) as own, Proxy(own.fleet.address, seed=4) as proxy:
        own.allow(job())
        for name in names:
            own.begin(name, *dialled(proxy))
        for name in names:
            own.fleet.wait_ready(name)
        whole = own.client.train(job())
        wanted = list(whole)
        for mode, least in ((MESSAGES, 5), (ANYWHERE, 1)):
            before = sum(proxy.flipped.values())
            proxy.set_mode(mode)
            run = own.client.train(job())
            rounds = list(run)
            proxy.set_mode(Pass())
            assert sum(proxy.flipped.values()) - before >= least
            assert run.describe().state is RunState.FINISHED
            assert [r.loss for r in rounds] == [r.loss for r in wanted]
            assert not any(r.left_out for r in rounds)
            assert max(r.seconds["all"] for r in rounds) < 250, "not to anybody's deadline, which is 300 s"
            final = run.parameters()
            for name, array in whole.parameters().items():
                np.testing.assert_array_equal(final[name], array, err_msg=name)
