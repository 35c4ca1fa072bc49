"""`edge-attention` from its first moment: Ctrl-C while modules still load ends it as it does later."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this: what is printed goes nowhere
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    # What fails is said in our words; gRPC's own would come beside them. Read as gRPC loads.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Not KeyboardInterrupt: raised amid an import it is printed, or lost in a callback of the importer.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
        from edge_attention.cli.main import main as run

        signal.signal(signal.SIGINT, signal.default_int_handler)
    else:  # whoever started this, as a script's `&`, has Ctrl-C ignored
        from edge_attention.cli.main import main as run
    run()


if __name__ == "__main__":
    main()
