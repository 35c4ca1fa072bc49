"""Somebody who means well: attends over a context of its own, again and again; every answer must be exact.

    python -m tests.hostile.good ADDRESS

Says one line of JSON when its tokens are stored. Each line it reads begins or ends its attends; at the end of
them it says, in JSON, how many seconds each took and what was wrong.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS / "e2e")]

import numpy as np  # noqa: E402
from fleets import queries, tokens, truth  # noqa: E402

from edge_attention import Client  # noqa: E402
from edge_attention.core.errors import EdgeAttentionError  # noqa: E402

SPEC = {"query_heads": 4, "key_heads": 2, "key_dim": 16, "value_dim": 8}
PAUSE = 0.02


def main(address: str) -> None:
    with Client(address, timeout=180) as client:
        keys, values = tokens(2_000, SPEC)
        asked = queries(2, SPEC)
        truly, _ = truth(asked, keys, values)
        context = client.create_context("means-well", **SPEC)
        for node, part in (("a", slice(0, 1000)), ("b", slice(1000, 2000))):
            context.append(keys[part], values[part], node=node)
        say("stored")
        while sys.stdin.readline():
            over = threading.Event()
            seconds: list[float] = []
            wrong: list[str] = []
            thread = threading.Thread(
                target=attends, args=(context, asked, truly, over, seconds, wrong), daemon=True
            )
            thread.start()
            sys.stdin.readline()
            over.set()
            thread.join(180)
            say([seconds, wrong])


def attends(
    context: Any,
    asked: np.ndarray,
    truly: np.ndarray,
    over: threading.Event,
    seconds: list[float],
    wrong: list[str],
) -> None:
    while not over.wait(PAUSE):
        began = time.monotonic()
        try:
            answer = context.attend(asked, deadline=120.0)
        except EdgeAttentionError as error:
            wrong.append(f"a good attend ended with {type(error).__name__}: {error}")
            continue
        seconds.append(time.monotonic() - began)
        if not answer.exact:
            wrong.append(f"a good attend is not exact: {[gap.reason for gap in answer.missing]}")
        elif np.abs(answer.out - truly).max() > 1e-5:
            wrong.append("a good attend says exact and is wrong")


def say(what: Any) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
