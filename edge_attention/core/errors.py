"""The one catalogue of errors. Each has a name, a gRPC status, and a sentence for a person.

    EdgeAttentionError
    ├── InvalidArgument        INVALID_ARGUMENT     the request is wrong, whatever the state
    │   ├── InvalidTensor                           shape, dtype, checksum, encoding
    │   │   └── NotFinite                           NaN or infinity in it
    │   ├── InvalidGraph                            an ONNX file that cannot be used
    │   │   └── GraphDied                           running it ends the process it runs in
    │   └── InvalidProgram                          an instruction that cannot be carried out
    ├── NotFound               NOT_FOUND            no such node, context, run, version, tensor, blob
    │   └── UnknownProgram                          a node does not know a prepared program: it is sent it
    ├── AlreadyExists          ALREADY_EXISTS       a name is taken
    │   └── DuplicateContribution                   the fold has this one already
    ├── FailedPrecondition     FAILED_PRECONDITION  right in itself, not in this state
    │   ├── EmptyContext
    │   ├── StaleVersion                            made with other parameters than asked for
    │   └── Overtaken                               a later change of the same thing has come before it
    ├── Unauthenticated        UNAUTHENTICATED      who calls has not shown who it is
    │   └── Revoked                                 it has, and is no longer let in: trying again is no use
    ├── PermissionDenied       PERMISSION_DENIED    not allowed to this peer
    │   └── PrivateTensor                           the node's operator has not allowed it to leave
    ├── ResourceExhausted      RESOURCE_EXHAUSTED   a limit was reached; says which
    │   ├── MessageTooLarge
    │   ├── OutOfMemory
    │   ├── DiskFull                                says of which folder; what is to be kept waits for room
    │   └── PrivateLimit                            failed on a node's private data too often today
    ├── Unavailable            UNAVAILABLE          a peer is away; trying again may help
    │   ├── Overloaded                              not now: too much is asked; `retry_after` says when
    │   └── Unreachable                             nobody answered at the address
    ├── DeadlineExceeded       DEADLINE_EXCEEDED    says what was waited for
    ├── Cancelled              CANCELLED
    ├── DataLoss               DATA_LOSS            a digest or checksum does not fit
    │   └── Damaged                                 a message's: nothing was done, send it again
    ├── Unimplemented          UNIMPLEMENTED        no such method there: its release is older
    └── Internal               INTERNAL             a defect of ours
        └── NodeFailed                              a node's own failure, which it has called something else

The message says what was wrong, where, and what to do about it. `edge_attention.wire.errors` carries the
class over gRPC, so that a client raises the class the server named, and `retry_after` with it.

Every message is one line that can be shown anywhere (`core/printable`), whatever words of a peer are in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from edge_attention.core.printable import NODE_WORDS, WORDS, shown

__all__ = [
    "AlreadyExists",
    "Cancelled",
    "Damaged",
    "DataLoss",
    "DeadlineExceeded",
    "DiskFull",
    "DuplicateContribution",
    "EdgeAttentionError",
    "EmptyContext",
    "FailedPrecondition",
    "GraphDied",
    "Internal",
    "InvalidArgument",
    "InvalidGraph",
    "InvalidProgram",
    "InvalidTensor",
    "MessageTooLarge",
    "NodeFailed",
    "NotFinite",
    "NotFound",
    "OutOfMemory",
    "Overloaded",
    "Overtaken",
    "PermissionDenied",
    "PrivateLimit",
    "PrivateTensor",
    "ResourceExhausted",
    "Revoked",
    "StaleVersion",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "UnknownProgram",
    "Unreachable",
    "by_name",
]


class EdgeAttentionError(Exception):
    """Base of every error this project raises on purpose. `status` is the gRPC status code's name.

    `told`: the server said so itself, and it is not what a broken call looks like from here.

    Args:
        message: a sentence; what cannot be shown in it is escaped, what is past WORDS cut.
        lines: shown below it, each set in: no other line can be made to look like one of these.
        retry_after: in how many seconds the same call is worth another try; None: nobody can say.
    """

    status: ClassVar[str] = "UNKNOWN"
    told: bool = False

    def __init__(self, message: str, lines: Sequence[str] = (), retry_after: float | None = None) -> None:
        self.message = shown(message, WORDS) + "".join(f"\n    {shown(line, WORDS)}" for line in lines)
        self.retry_after = retry_after
        super().__init__(self.message)

    def __reduce__(self) -> tuple[Any, ...]:
        # As it is: made again of its message it would be cut and escaped twice, in whichever process gets it.
        return _remade, (type(self), self.message), self.__dict__


def _remade(cls: type[EdgeAttentionError], message: str) -> EdgeAttentionError:
    """An error that was pickled; the rest of it follows as its state."""
    error = cls.__new__(cls, message)
    Exception.__init__(error, message)
    return error


class InvalidArgument(EdgeAttentionError):
    status = "INVALID_ARGUMENT"


class InvalidTensor(InvalidArgument):
    pass


class NotFinite(InvalidTensor):
    pass


class InvalidGraph(InvalidArgument):
    pass


class GraphDied(InvalidGraph):
    pass


class InvalidProgram(InvalidArgument):
    pass


class NotFound(EdgeAttentionError):
    status = "NOT_FOUND"


class UnknownProgram(NotFound):
    pass


class AlreadyExists(EdgeAttentionError):
    status = "ALREADY_EXISTS"


class DuplicateContribution(AlreadyExists):
    pass


class FailedPrecondition(EdgeAttentionError):
    status = "FAILED_PRECONDITION"


class EmptyContext(FailedPrecondition):
    pass


class StaleVersion(FailedPrecondition):
    pass


class Overtaken(FailedPrecondition):
    pass


class Unauthenticated(EdgeAttentionError):
    status = "UNAUTHENTICATED"


class Revoked(Unauthenticated):
    pass


class PermissionDenied(EdgeAttentionError):
    status = "PERMISSION_DENIED"


class PrivateTensor(PermissionDenied):
    pass


class ResourceExhausted(EdgeAttentionError):
    status = "RESOURCE_EXHAUSTED"


class MessageTooLarge(ResourceExhausted):
    pass


class OutOfMemory(ResourceExhausted):
    pass


class DiskFull(ResourceExhausted):
    pass


class PrivateLimit(ResourceExhausted):
    pass


class Unavailable(EdgeAttentionError):
    status = "UNAVAILABLE"


class Overloaded(Unavailable):
    pass


class Unreachable(Unavailable):
    pass


class DeadlineExceeded(EdgeAttentionError):
    status = "DEADLINE_EXCEEDED"


class Cancelled(EdgeAttentionError):
    status = "CANCELLED"


class DataLoss(EdgeAttentionError):
    status = "DATA_LOSS"


class Damaged(DataLoss):
    """A message arrived, or was sent, that is not what its checksum says: it was not looked at."""


class Unimplemented(EdgeAttentionError):
    status = "UNIMPLEMENTED"


class Internal(EdgeAttentionError):
    status = "INTERNAL"


class NodeFailed(Internal):
    pass


def _catalogue(root: type[EdgeAttentionError]) -> dict[str, type[EdgeAttentionError]]:
    found = {root.__name__: root}
    for child in root.__subclasses__():
        found |= _catalogue(child)
    return found


_BY_NAME = _catalogue(EdgeAttentionError)


def by_name(name: str, message: str) -> EdgeAttentionError:
    """The error of class `name` saying `message`; an unknown name becomes the base class."""
    return _BY_NAME.get(name, EdgeAttentionError)(message)


_OF_NODES = (
    InvalidArgument,
    NotFound,
    FailedPrecondition,
    PermissionDenied,
    ResourceExhausted,
    DeadlineExceeded,
    Cancelled,
    DataLoss,
    NodeFailed,
)
"""What a node can say of a task. Nobody is to act on a node's word that a caller is revoked, that the
aggregator cannot be reached, or that it has a defect."""


def of_node(node: str, name: str, message: str) -> EdgeAttentionError:
    """The error that node `node` reports as class `name`; NodeFailed where it cannot speak of such."""
    error = by_name(name, f"node {node!r}: {shown(message, NODE_WORDS)}")
    if isinstance(error, _OF_NODES) or type(error) is Unavailable:
        return error
    said = shown(name, 80) or "nothing"
    return NodeFailed(f"node {node!r}, which calls it {said}: {shown(message, NODE_WORDS)}")
