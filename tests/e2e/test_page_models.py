"""Deployed models on the live page, in a real browser: who holds what, and what goes on with them now."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import browsers
import numpy as np
import pytest
from browsers import Browser
from fleets import Fleet

from edge_attention.core.errors import EdgeAttentionError

MODEL = Path(__file__).parent.parent / "graphs" / "axes" / "exports" / "bert.onnx"
TOKENS = 16


@pytest.fixture(scope="module")
def browser():
    with Browser() as made:
        yield made


class Asking:
    """Asks a model, now and then wrongly, until the block ends."""

    def __init__(self, fleet):
        self._fleet, self._over = fleet, threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self):
        self._thread.start()

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _ask(self):
        ids = np.random.default_rng(0).integers(1, 40, (1, TOKENS))
        with self._fleet.client() as client:
            model = client.model("bert")
            while not self._over.wait(0.02):
                model.infer({"input_ids": ids, "attention_mask": np.ones_like(ids)}, deadline=120)
                with contextlib.suppress(EdgeAttentionError):
                    model.infer({"input_ids": ids + 10_000, "attention_mask": np.ones_like(ids)})


def test_models_and_their_traffic(browser, tmp_path):
    browsers.find()
    with Fleet(tmp_path, "--metrics-port", "0") as fleet, fleet.client() as client:
        fleet.nodes("a", "b")
        client.deploy(MODEL, "bert", plan="tokens", dimensions={"sequence": TOKENS})
        browser.go(fleet.child("aggregator").wait_for(r"page at (\S+)")[1])
        card = "[data-model=bert]"
        browser.wait("serving", card)
        browser.wait("tokens 0-7 of 16.*a.*tokens 8-15 of 16.*b", card)
        with Asking(fleet):
            browser.wait(r"requests now.*\d a second", card)
            browser.wait(r"failed.*\d, now .* a second", card)
            browser.wait("bert.*failed.*InvalidArgument|bert.*failed.*InvalidTensor", "#infers-table")
            for shot in browser.shots(browsers.folder(tmp_path), "models"):
                assert shot.stat().st_size > 10_000
        assert browser.complaints() == []
