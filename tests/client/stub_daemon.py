"""Stands in for both daemons in tests of LocalFleet: says what they say, and does as it is told."""

import os
import signal
import sys
import time


def main() -> None:
    arguments = sys.argv[1:]
    if "--listen" in arguments:
        port = arguments[arguments.index("--listen") + 1].rpartition(":")[2]
        if "--metrics-port" in arguments:
            print("page at http://127.0.0.1:54322/", flush=True)
        print(f"listening on 127.0.0.1:{int(port) or 54321}", flush=True)
    else:
        name = arguments[arguments.index("--name") + 1]
        if name == "broken":
            sys.exit("no such provider")
        print(f"2026 INFO registered with 127.0.0.1:54321 as {name}", flush=True)
    print("arguments", *arguments, flush=True)
    if "deaf" in arguments:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("deaf", flush=True)
    else:
        # Not sys.exit: a second signal while Python shuts down would print a traceback.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    while True:
        time.sleep(0.05)
