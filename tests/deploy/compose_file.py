"""docker-compose.yml as a mapping, its ${VARIABLE:-default} replaced by the defaults."""

from __future__ import annotations

import re
from typing import Any

import yaml
from daemon_settings import ROOT

FILE = ROOT / "docker-compose.yml"
_VARIABLE = re.compile(r"\$\{(\w+)(?::?-([^}]*))?\}")


def services() -> dict[str, Any]:
    text = _VARIABLE.sub(lambda match: match[2] or "", FILE.read_text())
    found: dict[str, Any] = yaml.safe_load(text)["services"]
    return found


def environment(service: dict[str, Any]) -> dict[str, str]:
    """Its variables; those that are empty by default are left out."""
    listed = service.get("environment", {})
    pairs = listed.items() if isinstance(listed, dict) else (line.split("=", 1) for line in listed)
    return {name: str(value) for name, value in pairs if value not in ("", None)}


def size(text: str) -> int:
    """Bytes of Docker's `64m` or Kubernetes' `64Mi`: both count in 1024."""
    number, unit = re.fullmatch(r"(\d+)([kmgKMG])i?b?", str(text)).groups()
    return int(number) * 1024 ** ("kmg".index(unit.lower()) + 1)


def span(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([sm])", text).groups()
    return int(number) * (60 if unit == "m" else 1)
