"""Does every panel of the dashboards show something? Runs each query, as Grafana would, against a Prometheus.

    python tests/deploy/panels.py http://127.0.0.1:9090 --wait 120
    python tests/deploy/panels.py http://127.0.0.1:9090 --without-tls

Needs the standard library only. In a test, `panels.check(url)` gives the findings: panels without data, and
queries that are wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "deploy/grafana/dashboards"

MAY_BE_EMPTY: Mapping[tuple[str, str], str] = {
    ("edge-attention-fleet", "Alerts"): "nothing fires while all is well",
    ("edge-attention-fleet", "Calls refused"): "nobody was refused",
    ("edge-attention-attention", "Certified bound of partial answers"): "exact answers have no bound",
    ("edge-attention-training", "Consensus losses"): "only jobs with a probe batch have them",
    ("edge-attention-models", "Exact"): "no model is deployed",
    ("edge-attention-models", "Seconds by model"): "no model is deployed",
    ("edge-attention-models", "Requests by model"): "no model is deployed",
    ("edge-attention-models", "Failures by model"): "no model is deployed",
    ("edge-attention-models", "Waiting by model"): "no model is deployed",
    ("edge-attention-models", "Median by stage"): "no model is deployed",
    ("edge-attention-models", "99% by stage"): "no model is deployed",
    ("edge-attention-models", "Weights by node"): "no model is deployed",
    ("edge-attention-node", "Resident memory"): "it would tell of private data",
    ("edge-attention-node", "Processor"): "it would tell of private data",
}
"""Panels, by dashboard and title, that a healthy fleet may leave empty, and why. Their queries are valid."""

EMPTY_WITHOUT_TLS: Mapping[tuple[str, str], str] = {
    ("edge-attention-fleet", "Certificate that ends first"): "no certificates",
    ("edge-attention-fleet", "Certificate days left"): "no certificates",
    ("edge-attention-fleet", "Certificates issued"): "no certificates",
    ("edge-attention-fleet", "Enrolments"): "nobody enrols",
    ("edge-attention-node", "Certificate"): "no certificates",
}
"""The same, for a fleet on loopback."""

SECONDS = 900
STEP = 15


@dataclass(frozen=True)
class Finding:
    """A query that shows nothing, or is none. `panel` is a title; of a variable or annotation, its name."""

    board: str
    panel: str
    query: str
    problem: str

    def __str__(self) -> str:
        return f"{self.board}: {self.panel}: {self.problem}: {self.query}"


class Refused(Exception):
    """Prometheus refused the query; the text says why."""


class Prometheus:
    """The queries a dashboard makes, over the last `SECONDS`."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def query(self, expr: str, instant: bool) -> list[dict[str, Any]]:
        """Series, each with `metric` and `value` or `values`."""
        now = time.time()
        if instant:
            answer = self._get("query", {"query": expr, "time": now})
        else:
            answer = self._get(
                "query_range", {"query": expr, "start": now - SECONDS, "end": now, "step": STEP}
            )
        if answer["resultType"] != ("vector" if instant else "matrix"):
            raise Refused(f"the result is a {answer['resultType']}, which panels do not show")
        return list(answer["result"])

    def label_values(self, metric: str, label: str) -> list[str]:
        now = time.time()
        asked = {"match[]": metric, "start": now - SECONDS, "end": now}
        return list(self._get(f"label/{label}/values", asked))

    def scrape_interval(self) -> float:
        """Of prometheus.yml's `global`; what $__rate_interval follows."""
        found = re.search(r"^  scrape_interval: (\S+)$", self._get("status/config", {})["yaml"], re.MULTILINE)
        parts = re.findall(r"(\d+)(ms|s|m|h)", found[1] if found else "1m")
        return sum(float(count) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit] for count, unit in parts)

    def _get(self, path: str, parameters: Mapping[str, object]) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=120) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            with contextlib.suppress(ValueError, KeyError):
                text = json.loads(text)["error"]
            raise Refused(text) from None


def check(
    url: str, may_be_empty: Mapping[tuple[str, str], str] = MAY_BE_EMPTY, folder: Path = FOLDER
) -> list[Finding]:
    """What the dashboards in `folder` would not show, for each value of a variable that has one at a time.

    Args:
        url: of the Prometheus, as http://127.0.0.1:9090.
        may_be_empty: panels that need no data, only a valid query.
    """
    files = sorted(folder.glob("*.json"))
    boards = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    if not boards:
        raise FileNotFoundError(f"no dashboards in {folder}; run `make dashboards`")
    prometheus = Prometheus(url)
    titles = {(board["uid"], panel["title"]) for board in boards for panel in panels(board)}
    findings = [
        Finding(*key, "", "is listed as one that may be empty, but there is no such panel")
        for key in may_be_empty
        if key not in titles
    ]
    rate_interval = (
        f"{math.ceil(max(STEP + prometheus.scrape_interval(), 4 * prometheus.scrape_interval()))}s"
    )
    for board in boards:
        findings += _check_board(prometheus, board, rate_interval, may_be_empty)
    return findings


def wait(
    url: str,
    seconds: float,
    may_be_empty: Mapping[tuple[str, str], str] = MAY_BE_EMPTY,
    folder: Path = FOLDER,
) -> list[Finding]:
    """Check until there are no findings or `seconds` are over: rates need some scrapes."""
    end = time.monotonic() + seconds
    while (findings := check(url, may_be_empty, folder)) and time.monotonic() < end:
        time.sleep(2)
    return findings


def panels(board: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Panels of a dashboard that have queries; those of collapsed rows too."""
    for panel in board["panels"]:
        for one in (panel, *panel.get("panels", ())):
            if one["type"] not in ("row", "text"):
                yield one


def queries(board: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every PromQL expression of a dashboard, with the panel, variable or annotation it is of."""
    for panel in panels(board):
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for annotation in board["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]
    for name, metric, label, _ in variables(board):
        yield f"${name}", f"count by ({label}) ({metric})"


def variables(board: Mapping[str, Any]) -> Iterator[tuple[str, str, str, bool]]:
    """Name, metric, label, and whether it has several values at a time, of each query variable."""
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), *(\w+)\)", variable["query"]["query"])
            if not found:
                raise ValueError(
                    f"{board['uid']}: ${variable['name']}: only label_values(metric, label) is known"
                )
            yield variable["name"], found[1], found[2], variable["multi"]


def substitute(expr: str, values: Mapping[str, str]) -> str:
    """`expr` with $name, ${name} and ${name:format} replaced; KeyError for a name without value."""
    return re.sub(r"\$(?:\{(\w+)(?::\w+)?\}|(\w+))", lambda found: values[found[1] or found[2]], expr)


def _check_board(
    prometheus: Prometheus,
    board: Mapping[str, Any],
    rate_interval: str,
    may_be_empty: Mapping[tuple[str, str], str],
) -> list[Finding]:
    uid = board["uid"]
    findings = []
    chosen: list[dict[str, str]] = [
        {"__rate_interval": rate_interval, "__interval": f"{STEP}s", "__range": f"{SECONDS}s"}
    ]
    for name, metric, label, several in variables(board):
        values = prometheus.label_values(metric, label)
        if not values:
            findings.append(Finding(uid, f"${name}", metric, f"no values of the label {label}"))
        # All at once, as Grafana's All does; or one after the other.
        choices = [".*"] if several else values
        chosen = [{**one, name: choice} for one in chosen for choice in choices]
    for values in chosen:
        for panel in panels(board):
            for target in panel["targets"]:
                instant = bool(target.get("instant"))
                empty = (uid, panel["title"]) in may_be_empty
                problem, expr = _problem(prometheus, target["expr"], values, instant, empty)
                if problem:
                    findings.append(Finding(uid, panel["title"], expr, problem))
    for annotation in board["annotations"]["list"]:
        problem, expr = _problem(prometheus, annotation["expr"], chosen[0] if chosen else {}, False, True)
        if problem:
            findings.append(Finding(uid, annotation["name"], expr, problem))
    return findings


def _problem(
    prometheus: Prometheus, expr: str, values: Mapping[str, str], instant: bool, may_be_empty: bool
) -> tuple[str, str]:
    """What is wrong with a query, or nothing; and the query as it was sent."""
    try:
        expr = substitute(expr, values)
        found = prometheus.query(expr, instant)
    except KeyError as error:
        return f"no variable {error}", expr
    except Refused as error:
        return f"refused: {error}", expr
    if may_be_empty:
        return "", expr
    if not found:
        return "no data", expr
    samples = [one["value"] for one in found] if instant else [s for one in found for s in one["values"]]
    if not any(math.isfinite(float(value)) for _, value in samples):
        return "no number, only NaN or infinity", expr
    return "", expr


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Does every panel of the dashboards show something?")
    parser.add_argument("prometheus", help="its URL, as http://127.0.0.1:9090")
    parser.add_argument("--dashboards", type=Path, default=FOLDER, help="folder with their JSON")
    parser.add_argument("--wait", type=float, default=0, metavar="SECONDS", help="try again so long")
    parser.add_argument(
        "--without-tls", action="store_true", help="a fleet on loopback, without certificates"
    )
    given = parser.parse_args(arguments)
    may_be_empty = {**MAY_BE_EMPTY, **(EMPTY_WITHOUT_TLS if given.without_tls else {})}
    findings = wait(given.prometheus, given.wait, may_be_empty, given.dashboards)
    for finding in findings:
        print(finding)
    print(f"{len(findings)} findings" if findings else "every panel shows something")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
