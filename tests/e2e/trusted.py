"""A fleet with TLS: an aggregator with its own authority, and the tokens it wrote at its start."""

from __future__ import annotations

import json
import subprocess
import sys

from fleets import Fleet, command, until

FAST = ("--lease", "5")


class TrustedFleet(Fleet):
    """`folder/state` is the aggregator's, `folder/boot` what --bootstrap writes."""

    def __init__(self, folder, *flags):
        self.boot = folder / "boot"
        self.audit_file = folder / "state" / "audit.jsonl"
        self.flags = ("--tls", "--bootstrap", str(self.boot), *FAST)
        super().__init__(folder, *self.flags, *flags, state=True)

    def token(self, role):
        """The text of a token --bootstrap wrote: join, viewer, operator."""
        return (self.boot / f"{role}-token").read_text().strip()

    def client(self, role="operator", **options):
        return super().client(token=self.token(role), **options)

    def store(self, name):
        return self.folder / name

    def trusted_node(self, name, *flags, token=None, wait=True, **options):
        joins = ("--join-token", token or self.token("join"), "--store", str(self.store(name)))
        return self.start_node(name, "--threads", "1", *joins, *flags, wait=wait, **options)

    def aggregator(self, *arguments):
        """Run `edge-aggregator` on the state folder; what it printed."""
        done = command("aggregator.main", "--state", self.folder / "state", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def make_token(self, *arguments):
        return json.loads(self.aggregator("token", "create", *arguments, "--json"))

    def audit(self):
        return [json.loads(line) for line in self.audit_file.read_text().splitlines()]

    def audited(self, event, reason="", subject=None):
        """The line of the audit log that says so; waits for it."""

        def found():
            return [
                line
                for line in self.audit()
                if line["event"] == event
                and reason in line["reason"]
                and (subject is None or line["subject"] == subject)
            ]

        return until(found, f"an audit line {event!r} with {reason!r}")[-1]


def run_node(*arguments, timeout=300):
    """Run `edge-node` until it ends by itself."""
    code = "from edge_node.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=timeout
    )
