"""What generation needs of `decoding`: sessions that hold a model's state, wherever that lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from edge_attention.core.tensors import Array, Float32, Int64

__all__ = ["TokenForm", "TokenSessions"]

S = TypeVar("S")


class TokenForm(Protocol):
    """`vocabulary`: how many tokens the model knows, ids are below. `length`: tokens of a session at most.
    `states`: not empty of a decoder beside an encoder, whose sessions begin with that one's input."""

    @property
    def vocabulary(self) -> int: ...

    @property
    def length(self) -> int: ...

    @property
    def states(self) -> str: ...


class TokenSessions(Protocol[S]):
    """Sessions of deployed decoders. Several may go on at once."""

    def models(self) -> Sequence[str]:
        """Names of the models that have sessions."""

    def form(self, model: str) -> TokenForm:
        """What its sessions are. Raises NotFound, FailedPrecondition: it is not deployed, or no decoder."""

    def version(self, model: str) -> str:
        """Names the deployment that sessions are opened of now, and no other. Raises as `form`."""

    async def open(
        self,
        model: str,
        owner: str,
        seconds: float,
        inputs: Mapping[str, Array] | None = None,
        ids: Sequence[int] = (),
        priority: int = 0,
        greedy: bool = False,
    ) -> S:
        """A session without tokens; `inputs` of an encoder, or its `ids`, where there is one.
        `priority`: see `GenerationRequest`.
        `greedy`: it is likely extended by the likeliest token, again and again.

        Raises NotFound, FailedPrecondition, InvalidTensor, ResourceExhausted.
        """

    def lacking(self, session: S) -> str:
        """Why its logits are not the whole model's, to rounding in its own types; empty: they are."""

    async def extend(self, session: S, ids: Int64, seconds: float) -> Float32:
        """Give the model the tokens `ids` [n]: its logits after each of them, float32 [n, vocabulary].

        Raises:
            DeadlineExceeded: it took longer; says what was waited for. The session can only be closed.
        """

    async def truncate(self, session: S, length: int) -> None:
        """Forget all tokens but the first `length`."""

    async def close(self, session: S) -> None:
        """Free what it holds, whatever is under way."""
