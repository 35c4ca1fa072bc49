"""A real Prometheus with the repository's own configuration, on a port of its own."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import yaml
from panels import Prometheus

FOLDER = Path(__file__).parents[2] / "deploy/prometheus"


def adapted(text, target, credentials=None):
    """The text of prometheus.yml for an aggregator at `target`, and quicker; all else as it is.

    `credentials` is the folder with authority.pem and viewer-token; without it there is no TLS and no token,
    as for a fleet on loopback.
    """
    config = yaml.safe_load(text.replace("aggregator:9464", target))
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    for job in config["scrape_configs"]:
        for sd in job.get("http_sd_configs", ()):
            sd["refresh_interval"] = "1s"
    if credentials is None:
        _without_tls(config)
    return yaml.safe_dump(config).replace("/run/edge-attention", str(credentials))


def _without_tls(config):
    for job in config["scrape_configs"]:
        for place in (job, *job.get("http_sd_configs", ())):
            del place["authorization"], place["tls_config"]
        job["scheme"] = "http"
        for sd in job.get("http_sd_configs", ()):
            sd["url"] = sd["url"].replace("https://", "http://")


class RunningPrometheus(Prometheus):
    """Scrapes the aggregator at `target` (HOST:PORT of its HTTP port) while the block runs; see `adapted`."""

    def __init__(self, program: str, folder: Path, target: str, credentials: Path | None = None) -> None:
        shutil.copytree(FOLDER, folder / "prometheus")
        file = folder / "prometheus/prometheus.yml"
        file.write_text(adapted(file.read_text(), target, credentials))
        self._lines: list[str] = []
        self.process = subprocess.Popen(
            [
                program,
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'data'}",
                "--web.listen-address=127.0.0.1:0",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()
        found = self._until(lambda: self._said(r"Listening on.*address=127\.0\.0\.1:(\d+)"), "listening")
        super().__init__(f"http://127.0.0.1:{found}")
        self._until(lambda: self._said(r"(Server is ready to receive web requests)"), "ready")

    def __enter__(self) -> RunningPrometheus:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(120)

    def now(self, expr: str) -> dict[str, float]:
        """The vector `expr` is now: labels as text -> value."""
        return {
            ",".join(f"{k}={v}" for k, v in sorted(one["metric"].items()) if k != "__name__"): float(
                one["value"][1]
            )
            for one in self.query(expr, instant=True)
        }

    def targets(self) -> list[dict[str, Any]]:
        """What it scrapes, with the error of the last scrape."""
        return list(self._get("targets", {"state": "active"})["activeTargets"])

    def until(self, expr: str, seconds: float = 300.0) -> dict[str, float]:
        """Wait until `expr` has a result; the result."""
        return self._until(lambda: self.now(expr), expr, seconds)

    def _until(self, condition, what, seconds=300.0):
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert self.process.poll() is None, "prometheus ended:\n" + "".join(self._lines[-20:])
            assert time.monotonic() < end, f"{what}: not in {seconds} s:\n" + "".join(self._lines[-20:])
            time.sleep(0.1)
        return found

    def _said(self, pattern: str) -> str:
        return next((found[1] for line in self._lines if (found := re.search(pattern, line))), "")

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self._lines.append(line)
