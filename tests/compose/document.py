"""The commands of docs/deploy.md, run as written.

What is put in place of the document's words, because the test has one machine and no registry, is all in
`Substitution`; docs/deploy.md says the same in its last section.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "deploy.md"


def commands(name: str) -> list[str]:
    """The commands of the block marked `<!-- test: NAME -->`, without the comments at their ends."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.search(rf"<!-- test: {name} -->\n```console\n(.*?)```", text, re.DOTALL)
    if not found:
        raise SystemExit(f"{PAGE} has no block {name!r}")
    lines = [re.sub(r"\s{2,}#.*$", "", line) for line in found[1].splitlines()]
    return [line for line in lines if line.strip()]


@dataclass
class Substitution:
    """`compose`: the command there is. `address`: the aggregator's. `box`: a folder, the other machine."""

    compose: list[str]
    box: Path
    address: str = ""
    token: str = ""
    skipped: dict[str, str] = field(default_factory=dict)
    """What a command contains -> why it is not run here."""

    def reason(self, command: str) -> str | None:
        return next((why for word, why in self.skipped.items() if word in command), None)

    def apply(self, command: str) -> str:
        """`command` for bash on this machine."""
        command = command.replace("fleet.example:50051", self.address).replace("eaj_...", self.token)
        # The other machine is a folder: what is copied there, and run there.
        command = re.sub(r"\bscp (\S+) loft:", rf"cp \1 {self.box}/", command)
        command = re.sub(r"\bssh loft (?:'([^']*)'|(.*))$", self._over_there, command)
        if self.compose == ["docker-compose"]:
            command = command.replace("docker compose exec", "docker compose exec -T")
        return re.sub(r"\bdocker compose\b", shlex.join(self.compose), command)

    def _over_there(self, match: re.Match[str]) -> str:
        inner = match[1] or match[2]
        fresh = "unset COMPOSE_FILE COMPOSE_PROFILES && export COMPOSE_PROJECT_NAME=loft"
        return f"(cd {self.box} && {fresh} && {inner})"
