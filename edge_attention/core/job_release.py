"""All that one job lets leave a node, under one name: `job:<fingerprint>`.

    {"alignment":true,"job":1,"releases":["<digest of a release>", ...]}

That is its text, in one line; the fingerprint is the SHA-256 of it. An operator who allows the fingerprint
allows each of these releases (core/release.py), which name graphs and the columns that they may read, and
where `alignment` says so the keyed hashes of ids. Programs of the job bring the text, as they bring those of
the releases: a node puts in force what its operator has allowed, and nothing else that is brought.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.release import MAX_TEXT

__all__ = ["ALIGNMENT", "JOB", "OWN_DATA", "JobRelease", "job_release_of"]

JOB = "job:"
"""What the flag's value begins with."""
ALIGNMENT = "alignment"
"""The release of the keyed hashes of rows' ids, by which nodes find the rows they share."""
OWN_DATA = "own-data"
"""What a node announces that lets leave all that programs bring releases of: on one machine, to develop."""
FORMAT = 1
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class JobRelease:
    """What a job needs: releases by digest, and whether the keyed hashes of ids."""

    releases: frozenset[str]
    alignment: bool = False

    @cached_property
    def text(self) -> str:
        """In the one form that there is."""
        found = {"job": FORMAT, "alignment": self.alignment, "releases": sorted(self.releases)}
        return json.dumps(found, sort_keys=True, separators=(",", ":"))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the text, in hex."""
        return sha256(self.text.encode()).hexdigest()

    @property
    def flag(self) -> str:
        """What `edge-node --allow-release` takes."""
        return f"{JOB}{self.fingerprint}"

    @classmethod
    def parse(cls, text: str) -> JobRelease:
        """The one with that text, to the letter.

        Raises:
            InvalidArgument: it is none, or not in the one form.
        """
        if len(text) > MAX_TEXT:
            raise InvalidArgument(
                f"a job's release has at most {MAX_TEXT:,} characters; this has {len(text):,}"
            )
        try:
            found = json.loads(text)
            release = cls(frozenset(map(str, found["releases"])), found["alignment"] is True)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InvalidArgument(f"{text[:80]!r} is no job's release") from None
        if release.text != text or not all(map(_DIGEST.fullmatch, release.releases)):
            raise InvalidArgument(
                "a job's release names releases by their SHA-256, sorted, without spaces, in ASCII; this "
                "text does not"
            )
        return release

    @classmethod
    def of_text(cls, text: str) -> JobRelease | None:
        """As `parse`; None: it is none."""
        try:
            return cls.parse(text)
        except InvalidArgument:
            return None


def job_release_of(flags: Iterable[str]) -> JobRelease | None:
    """That of a job which needs these values of `--allow-release`: `alignment`, `sha256:<digest>`; None: it
    needs nothing."""
    needed = {flag for flag in flags if flag}
    if not needed:
        return None
    digests = frozenset(flag.removeprefix("sha256:") for flag in needed if flag != ALIGNMENT)
    return JobRelease(digests, ALIGNMENT in needed)
