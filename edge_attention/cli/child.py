"""Runs the `main` of a module, and stops it when whoever holds the other end of stdin is gone.

    python -m edge_attention.cli.child edge_node.main --name a ...

A pipe instead of Linux' parent-death signal: that one is tied to the thread that started the child.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from importlib import import_module

GRACE = 10.0


def _follow_parent() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_follow_parent, daemon=True).start()
    del sys.argv[0]
    import_module(sys.argv[0]).main()
