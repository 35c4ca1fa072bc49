"""A replica's number, so that what is kept for it is found again by its next container.

`docker compose` tells a container nothing of it but a name, `edge-attention-edge-node-2`, and that only its
DNS server: `getent -s dns` asks there and nowhere else, as /etc/hosts has the container's id.
"""

from __future__ import annotations

import re
import socket
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from edge_attention.core.errors import FailedPrecondition
from edge_node.options import REPLICA, JoinOptions

__all__ = ["Replica", "numbered"]

ASKED_SECONDS = 10.0
_NAME = re.compile(r"^\S+\s+\S*?[-_](\d+)\.\S+")


@dataclass(init=False)
class Replica:
    """What the command line says, with the replica's number in its places.

    Attributes:
        name: as given; None where it had a place: it is a suggestion then, as the name may be taken where the
            identity of that number was lost.
        suggested: the name with the number; empty: none.
    """

    name: str | None
    suggested: str
    store: Path | None
    data: tuple[str, ...]
    join: JoinOptions

    def __init__(
        self,
        number: int | None,
        name: str | None,
        store: Path | None,
        data: tuple[str, ...],
        join: JoinOptions,
    ) -> None:
        """`number`: None: that of this container.

        Raises:
            FailedPrecondition: it is not known.
        """
        self.name, self.suggested = name, ""
        if name is not None and REPLICA in name:
            self.name, self.suggested = None, numbered(name, number)
        self.store = None if store is None else Path(numbered(str(store), number))
        self.data = tuple(numbered(spec, number) for spec in data)
        identity = None if join.identity is None else Path(numbered(str(join.identity), number))
        self.join = replace(join, identity=identity)


def numbered(text: str, number: int | None) -> str:
    """`text` with the number in its place. `number`: None: that of this container.

    Raises:
        FailedPrecondition: the text has a place and the number is not known.
    """
    if REPLICA not in text:
        return text
    return text.replace(REPLICA, str(_container_number() if number is None else number))


def _container_number() -> int:
    try:
        address = socket.gethostbyname(socket.gethostname())
        asked = ["getent", "-s", "dns", "hosts", address]
        said = subprocess.run(
            asked, capture_output=True, text=True, timeout=ASKED_SECONDS, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        said, address = "", f"this host ({error})"
    if (found := _NAME.match(said)) is None:
        raise FailedPrecondition(
            f"{REPLICA} is a replica's number, and the network does not say which this is: of {address} it "
            f"says {said.strip()!r}, which is no container's name that ends in a number; give --replica N"
        )
    return int(found[1])
