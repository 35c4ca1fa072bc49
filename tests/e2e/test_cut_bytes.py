"""What a request of a cut model sends over real links, as the wire counts it: tensors, and headers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from test_cut_models import run

from edge_attention.core.schedule.plan import Crossing, Cut, CutPlan, Stage
from edge_attention.core.schedule.schedule import TensorForm
from edge_attention.core.schedule.traffic import traffic_of
from edge_attention.graphs.axes.cut import cut_model
from edge_attention.graphs.axes.folder import CutFolder

pytestmark = pytest.mark.e2e

MODEL = Path(__file__).parent.parent / "graphs/axes/exports/bert.onnx"
BATCH, TOKENS = 8, 64
HEADER = 500
"""Bytes of a message around its tensors, at most: about 100, and heartbeats now and then."""
REQUESTS = 4
"""Alike, of which the least that a node's link had counts: heartbeats with reports of 7,000 bytes come now
and then, and are none of a request's."""
WAYS = {
    "heads": (Cut.HEADS, Crossing.GATHER),
    "gather": (Cut.TOKENS, Crossing.GATHER),
    "switch": (Cut.TOKENS, Crossing.SWITCH),
    "merge": (Cut.TOKENS, Crossing.MERGE),
}


def test_each_plan_sends_what_its_schedule_says(tmp_path):
    rng = np.random.default_rng(0)
    lengths = rng.integers(TOKENS // 2, TOKENS + 1, (BATCH, 1))
    feeds = {
        "input_ids": rng.integers(3, 40, (BATCH, TOKENS)),
        "attention_mask": (np.arange(TOKENS) < lengths).astype(np.int64),
    }
    session = onnxruntime.InferenceSession(MODEL)
    whole = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))
    forms = {name: TensorForm(array.dtype.name, array.shape) for name, array in feeds.items()}

    async def scenario(fleet):
        await fleet.start("a", "b", "c")
        for word, (how, crossing) in WAYS.items():
            plan = CutPlan((Stage(range(1 << 20), (0, 1, 2), how, crossing, (2.0, 1.0, 1.0)),))
            folder = tmp_path / word
            folder.mkdir()
            schedule = cut_model(MODEL, plan, forms, folder)
            files = CutFolder(MODEL, folder)
            held = {0: ["a"], 1: ["b"], 2: ["c"]}
            await fleet.runner.prepare(word, "s", schedule, files, held, lambda *_: None, seconds=60)
            await fleet.runner.infer(word, "s", feeds, 60)  # what nodes are sent once, they are sent now
            link = fleet.engine.link
            moved = []
            for _ in range(REQUESTS):
                before = dict(link.bytes_sent), dict(link.bytes_received)
                answer = await fleet.runner.infer(word, "s", feeds, 60)
                moved.append(
                    {
                        n: (link.bytes_sent[n] - before[0][n], link.bytes_received[n] - before[1][n])
                        for n in "abc"
                    }
                )
                for name, array in whole.items():
                    assert np.abs(answer.results[name] - array).max() <= 1e-5 * np.abs(array).max()
                for part, node in enumerate("abc"):
                    wanted = traffic_of(schedule).parts[part]
                    assert answer.sent[node] == wanted.received, word
                    assert answer.received[node] == wanted.sent, word
            for part, node in enumerate("abc"):
                wanted = traffic_of(schedule).parts[part]
                headers = HEADER * wanted.trips
                down, up = (min(way) for way in zip(*(one[node] for one in moved), strict=True))
                assert wanted.received <= down <= 1.05 * wanted.received + headers, word
                assert wanted.sent <= up <= 1.05 * wanted.sent + headers, word
            await fleet.runner.release(word)

    run(scenario, tmp_path)
