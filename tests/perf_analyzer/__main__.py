"""`make test-perf-analyzer`: Triton's perf_analyzer, as PyPI has it, in full runs against a cut model.

python3 -m tests.perf_analyzer

It needs a newer glibc than many machines have, so it runs in a Debian trixie made by debootstrap, once; that
is kept. Nothing of it is checked but that it gets through, with no failed request.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from tests.compose import base
from tests.compose.console import Failed, complain, run, say
from tests.compose.fleet import ROOT

sys.path[:0] = [str(ROOT / "tests" / "e2e"), str(ROOT / "tests")]
from fleets import Fleet  # noqa: E402

SUITE = "trixie"
RELEASE = "2.60.0"
WHEEL = ("--platform", "manylinux_2_38_x86_64", "--python-version", "3.13", "--only-binary", ":all:")
MODEL = ROOT / "tests" / "graphs" / "axes" / "exports" / "bert.onnx"
TOKENS = 24
RUNS = {
    "1 request at a time": ("--concurrency-range", "1"),
    "3 at once": ("--concurrency-range", "3"),
    "2 at once, on streams": ("--concurrency-range", "2", "--streaming"),
    "batches of 4": ("--concurrency-range", "1", "-b", "4"),
    "20 a second": ("--request-rate-range", "20"),
}


def lacking() -> str | None:
    """Why it cannot be run here, with the remedy; None if it can."""
    if base.architecture() != "amd64":
        return "perf_analyzer is there for x86_64 alone"
    if os.geteuid() != 0:
        return "debootstrap and chroot need root: run `sudo make test-perf-analyzer`"
    if not shutil.which("debootstrap"):
        return "this machine lacks debootstrap, of the package debootstrap"
    return None


def trixie() -> Path:
    """The folder of a Debian trixie with perf_analyzer in it."""
    root = base.cache_folder().parent / "perf-analyzer" / f"{SUITE}-{RELEASE}"
    program = root / "usr" / "local" / "bin" / "perf_analyzer"
    if program.exists():
        return root
    say(f"building Debian {SUITE} by debootstrap (once; kept as {root})")
    shutil.rmtree(root, ignore_errors=True)
    root.parent.mkdir(parents=True, exist_ok=True)
    mirror, _ = base.mirrors()
    run(["debootstrap", "--variant=minbase", "--include=libstdc++6", SUITE, root, mirror], deadline=1800)
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", *WHEEL, "--dest", folder]
        run([*pip, f"perf-analyzer=={RELEASE}"], deadline=600)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as file:
            data = file.read("perf_analyzer/bin/perf_analyzer")
    part = program.with_suffix(".part")
    part.write_bytes(data)
    part.chmod(0o755)
    part.rename(program)
    return root


def main() -> int:
    if (why := lacking()) is not None:
        print(why)
        return 1
    root = trixie()
    with tempfile.TemporaryDirectory() as folder, Fleet(Path(folder), state=True) as fleet:
        fleet.nodes("a", "b")
        with fleet.client() as client:
            model = client.deploy(MODEL, "bert", plan="tokens", dimensions={"sequence": TOKENS})
            say(f"bert is deployed, {model.info.plan_text}")
        asked = [
            "chroot",
            root,
            "/usr/local/bin/perf_analyzer",
            "-m",
            "bert",
            "-i",
            "grpc",
            "-u",
            fleet.address,
        ]
        asked += ["--shape", f"input_ids:{TOKENS}", "--shape", f"attention_mask:{TOKENS}"]
        asked += ["--input-data", "zero", "--request-count", "200"]
        for name, flags in RUNS.items():
            said = run([*asked, *flags], deadline=300)
            rates = re.findall(r"^(?:Concurrency|Request Rate): .*infer/sec.*$", said, re.MULTILINE)
            if not rates:
                raise Failed(f"{name}: no results in what perf_analyzer says:\n{said[-2000:]}")
            say(name)
            for line in rates:
                print(f"    {line}")
    say("perf_analyzer got through")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as failed:
        complain(str(failed))
        sys.exit(1)
