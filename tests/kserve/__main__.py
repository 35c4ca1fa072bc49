"""`make test-kserve`: KServe's Python client, in an environment of its own, against a real fleet.

python3 -m tests.kserve PYTHON-THAT-HAS-KSERVE
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "e2e"), str(HERE.parent)]
from fleets import Fleet  # noqa: E402
from open_models import add_sub  # noqa: E402


def main(python: str) -> int:
    with tempfile.TemporaryDirectory() as folder, Fleet(Path(folder), "--metrics-port", "0") as fleet:
        fleet.nodes("a")
        file = Path(folder) / "simple.onnx"
        file.write_bytes(add_sub())
        with fleet.client() as client:
            client.deploy(file, "simple", plan="replicate")
        port = fleet.child("aggregator").wait_for(r"metrics on \S+:(\d+)")[1]
        asks = [python, str(HERE / "asks.py"), fleet.address, f"http://127.0.0.1:{port}"]
        return subprocess.run(asks, timeout=300).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
