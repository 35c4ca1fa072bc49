"""The guard of every gRPC call: authenticates, checks the role, and ends calls whose peer is no longer let "
"in."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any

from aggregator.serving.rpc import Served
from aggregator.trust.policy import ANY, OPEN
from edge_attention.core.errors import (
    EdgeAttentionError,
    Internal,
    PermissionDenied,
    Unauthenticated,
)
from edge_attention.trust.names import Role
from edge_attention.wire.methods import AnyMethod

if TYPE_CHECKING:  # without TLS an aggregator loads no cryptography
    from aggregator.trust.access import Access
    from aggregator.trust.proof import Peer
    from aggregator.trust.registry import Registry

UNWILLING_SECONDS = 5.0
"""How long a call that is to end waits for the other side to take what is under way."""

_current: ContextVar[GuardedCall | None] = ContextVar("call", default=None)


def caller() -> Peer | None:
    """Who makes the call that is being served; None without --tls."""
    call = _current.get()
    return None if call is None else call.peer


def subject() -> str:
    """Who makes it, as `node/a`; empty without --tls, and while nobody has shown who it is."""
    peer = caller()
    return "" if peer is None else peer.subject


class GuardedCall(Served):
    """One call being served; a context manager around its handler."""

    def __init__(self, calls: set[GuardedCall], peer: Peer, method: str, address: str) -> None:
        self._calls = calls
        self.peer = peer
        self.method = method
        self.address = address
        self.ends = peer.ends
        self._task: asyncio.Task[Any] | None = None
        self._ended: EdgeAttentionError | None = None
        self._away = False

    def __enter__(self) -> GuardedCall:
        self._task = asyncio.current_task()
        _current.set(self)
        self._calls.add(self)
        return self

    def __exit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._calls.discard(self)
        if self._ended is not None and isinstance(error, asyncio.CancelledError) and self._task is not None:
            self._task.uncancel()
            raise self._ended from None

    def away(self) -> None:
        self._away = True

    def back(self) -> None:
        self._away = False
        if self._ended is not None:
            raise self._ended

    def end(self, error: EdgeAttentionError) -> None:
        """End it with `error`, wherever it is."""
        if self._task is None or self._ended is not None:
            return
        self._ended = error
        if self._away:
            # Cancelled inside gRPC, a call would end without a word; it is back as soon as the other side
            # takes what is under way. Should that not do so, it ends all the same.
            asyncio.get_running_loop().call_later(UNWILLING_SECONDS, self._task.cancel)
        else:
            self._task.cancel()


class _Open(Served):
    """Around a call that needs nobody in particular."""

    def __enter__(self) -> _Open:
        _current.set(None)
        return self


class Guard:
    """Called with each method and context (`aggregator.serving.rpc.MethodGuard`).

    Until `require_roles` nobody may call what needs a role.
    """

    def __init__(self, access: Access, registry: Registry) -> None:
        self._access = access
        self._registry = registry
        self._calls: set[GuardedCall] = set()
        self._needed: Mapping[AnyMethod, Role] = {}

    def require_roles(self, needed: Mapping[AnyMethod, Role]) -> None:
        """From now on a call needs the role that `needed` has for its method."""
        self._needed = needed

    def __call__(self, method: AnyMethod, context: Any) -> GuardedCall | _Open:
        if method in OPEN:
            return _Open()
        name = f"{method.service.name.rpartition('.')[2]}.{method.name}"
        needed = self._needed.get(method)
        if needed is None and method not in ANY:
            raise Internal(f"{name} has no role, so nobody may call it; its Endpoint names one")
        return self.admit(name, needed, context)

    def admit(self, method: str, needed: Role | None, context: Any) -> GuardedCall:
        """The call, if who makes it may. `needed` None: anybody with a certificate or token."""
        address = context.peer()
        shown = next((v for k, v in context.invocation_metadata() or () if k == "authorization"), None)
        peer = self._access.authenticate(shown, address, method)
        if needed is not None:
            self._access.require(peer, needed, address, method)
        return GuardedCall(self._calls, peer, method, address)

    def serving(self, peer: Peer, method: str, address: str) -> GuardedCall:
        """A call of a peer that was let in elsewhere: over HTTP. Like others it ends when its token does."""
        return GuardedCall(self._calls, peer, method, address)

    def require_name(self, name: str, what: str) -> None:
        """Refuse what speaks of the node `name` unless the caller's certificate does too.

        Raises:
            PermissionDenied: the caller is another node.
        """
        call = _current.get()
        if call is None or call.peer.name == name:
            return
        own = call.peer.name
        error = PermissionDenied(
            f"{what} of node {name[:80]!r} came with the certificate of {own!r}: start that node with "
            f"--name {own}, or enrol {name[:80]!r} with a token and an --identity folder of its own"
        )
        self._access.refuse(error, call.address, call.method, call.peer.subject)
        raise error

    def changed(self) -> None:
        """Something was revoked: end the calls of whoever it was."""
        self._access.changed()
        for call in list(self._calls):
            try:
                self._registry.require_not_revoked(call.peer)
            except EdgeAttentionError as error:
                self._end(call, error)

    def tick(self, now: float) -> None:
        """End the calls of certificates that ended without being renewed, and of tokens that expired."""
        for call in [call for call in self._calls if now >= call.ends]:
            peer = call.peer
            if peer.certificate:
                call.ends = max(call.ends, self._registry.latest_end(peer.role, peer.name, peer.key))
            if now >= call.ends:
                from edge_attention.trust.certificates import moment

                what = "certificate" if peer.certificate else "access token"
                error = Unauthenticated(
                    f"the {what} of {peer.role} {peer.name!r} ended at {moment(call.ends)}, during the call: "
                    + ("enrol again with a join token" if peer.certificate else "ask for another")
                )
                self._end(call, error)

    def _end(self, call: GuardedCall, error: EdgeAttentionError) -> None:
        self._access.refuse(error, call.address, call.method, call.peer.subject)
        call.end(error)
