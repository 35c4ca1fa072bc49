"""Pictures of the page on a bad day, for whoever looks at it as a designer; no test.

    PYTHONPATH=.:tests python tests/e2e/page_pictures.py FOLDER

A run has failed, another waits for two nodes that are lost, answers are partial, names are long. What is
staged uses only what releases before had, too: run in two checkouts it gives before and after.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import schools
from browsers import Browser
from fleets import SPEC, queries, tokens, until
from schools import Schools

from edge_attention.cli.local_fleet import AGGREGATOR
from edge_attention.core.messages.training import LocalSpec, OptimizerSpec, RunState

NODES = ("a", "b", "c", "d")
LOST = ("b", "c")
NAME = "ward-7-vital-signs-of-the-night"
TOKENS = 800


def bad_day(own):
    """Stage it; the run that failed."""
    job = schools.job(rounds=30, nodes=NODES, holdout=0.2, evaluate_every=5)
    rate = LocalSpec(OptimizerSpec("sgd", {"lr": 1e30}), batch=16, steps=10)
    steep = schools.job(rounds=5, name="steep", nodes=NODES, local=rate)
    own.allow(job, steep)
    own.start()
    keys, values = tokens(TOKENS)
    contexts = [own.client.create_context(name, **SPEC) for name in ("memory", NAME)]
    for i, node in enumerate(NODES):
        part = slice(i * TOKENS // 4, (i + 1) * TOKENS // 4)
        contexts[0].append(keys[part], values[part], node=node)
    contexts[1].append(keys[:100], values[:100], node="a")
    for context in contexts:
        assert context.attend(queries(4)).exact
    assert list(own.client.train(job))[-1].number == 30
    failed = own.client.train(steep)
    until(lambda: failed.describe().state is RunState.FAILED, "the run that diverges")
    for node in LOST:
        own.fleet.kill(node)
    states = lambda: {node.name: node.state.value for node in own.client.nodes()}  # noqa: E731
    until(lambda: all(states()[node] == "lost" for node in LOST), "nodes that are lost")
    own.client.train(job)
    for _ in range(3):
        assert not contexts[0].attend(queries(2), deadline=5.0).exact
    return failed


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    flags = ("--lease", "3", "--metrics-port", "0")
    with (
        tempfile.TemporaryDirectory() as place,
        Browser() as browser,
        Schools(Path(place), *flags, names=NODES, store=True) as own,
    ):
        url = own.fleet.child(AGGREGATOR).wait_for(r"page at (\S+)")[1]
        failed = bad_day(own)
        browser.go(url)
        browser.wait("lost", "#nodes-table tr[data-node=c]")
        browser.wait("partial", "#queries-table tbody")
        browser.wait("[Ww]aits for", "#runs")
        browser.shots(folder, "bad-day")
        if not browser.count("#own"):
            return  # a release whose nodes and runs had no pages of their own
        for kind, name in (("node", "b"), ("run", failed.id), ("context", "memory")):
            browser.go(f"{url}#{kind}/{name}")
            browser.wait(name, "#own-title")
            browser.shots(folder, f"bad-day-{kind}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
