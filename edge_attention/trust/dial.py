"""How a peer reaches an aggregator: in plaintext on loopback, or by TLS with a token or a certificate."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from edge_attention.core.addresses import is_loopback, split_address
from edge_attention.core.errors import InvalidArgument
from edge_attention.trust.names import SERVER_NAME
from edge_attention.wire.caller import EXPLAIN_SECONDS, Caller, Metadata
from edge_attention.wire.methods import CHANNEL_OPTIONS
from edge_attention.wire.once import Once

# What knows certificates takes 10 MB, and who speaks plaintext has none.
if TYPE_CHECKING:
    from edge_attention.trust.authorities import Authorities
    from edge_attention.trust.identity import Identity
    from edge_attention.trust.tokens import Token

WHY_SECONDS = 5.0
"""For how long calls that fail alike are told one reason, found once."""


class Dial:
    """Opens channels to `address`, and has the metadata that goes with each call.

    Without authorities, token or identity: plaintext. With a token and no authorities, they are fetched by
    the token's pin when first needed.
    """

    def __init__(
        self,
        address: str,
        where: str = "",
        *,
        authorities: Authorities | None = None,
        token: Token | None = None,
        identity: Identity | None = None,
    ) -> None:
        if token is not None and identity is not None:
            raise InvalidArgument("give a token or an identity, not both: each says who is calling")
        if token is not None and authorities is not None:
            from edge_attention.trust.authorities import pin_of, pinned

            if not pinned(token.pin, authorities):
                raise InvalidArgument(
                    f"token {token.id} is of the authority {token.pin[:16]}..., and the authority given is "
                    f"{pin_of(authorities)[:16]}...: leave out --authority, or use a token of that aggregator"
                )
        self.address = address
        self.where = where or address
        self._token = token
        self._authorities = authorities or (identity.authorities if identity is not None else None)
        self._encrypted = self._authorities is not None or token is not None
        self.ends: Callable[[], float] = lambda: 0.0
        """When the certificate shown ends, in seconds since 1970; 0 without one."""
        self._metadata: Callable[[], Metadata] = tuple
        self._finding = Once(self._find_authority)
        self._why = Once(self.why_now, WHY_SECONDS)
        if token is not None:
            shown = (("authorization", f"Bearer {token.text}"),)
            self._metadata = lambda: shown
        elif identity is not None:
            self.become(identity)

    def become(self, identity: Identity) -> None:
        """Show the identity's certificate from the next call on; connections stay as they are."""
        from edge_attention.trust.assertion import Assertion

        assertion = Assertion(identity.key, identity.certificate, identity.issuer)
        self._metadata = lambda: (("authorization", f"Bearer {assertion.text()}"),)

    def caller(self) -> Caller:
        """A caller whose channel is opened at its first call."""
        return Caller(self._opened, self.where, self._metadata_now, self.why)

    def open_caller(self) -> Caller:
        """A caller with an open channel; the authority is known, or not needed."""
        return Caller(self._open(grpc.aio.secure_channel), self.where, self._metadata_now, self.why)

    def channel(self) -> grpc.Channel:
        """A channel for synchronous calls; blocks while the authority is fetched."""
        self._find_authority()
        channel: grpc.Channel = self._open(grpc.secure_channel)
        return channel

    def metadata(self) -> Metadata:
        return self._metadata()

    async def why(self, seconds: float) -> str | None:
        """Why the aggregator cannot be reached, if that is known in `seconds`; found once for many calls."""
        try:
            return await self._why.result(seconds)
        except TimeoutError:
            return None

    def why_now(self, seconds: float = EXPLAIN_SECONDS) -> str | None:
        if self._encrypted and self._authorities is None:
            return None
        from edge_attention.trust.authorities import are_ours
        from edge_attention.trust.explain import why_unreachable

        name = SERVER_NAME if self._authorities is not None and are_ours(self._authorities) else None
        return why_unreachable(self.address, self._authorities, name, seconds)

    def _metadata_now(self) -> Metadata:
        return self._metadata()

    async def _opened(self) -> grpc.aio.Channel:
        if self._authorities is None and self._token is not None:
            await self._finding.result()
        channel: grpc.aio.Channel = self._open(grpc.aio.secure_channel)
        return channel

    def _find_authority(self) -> None:
        if self._authorities is None and self._token is not None:
            from edge_attention.trust.bootstrap import fetch_authorities

            self._authorities = fetch_authorities(self.address, self._token.pin)

    def _open(self, secure: Callable[..., Any]) -> Any:
        # Its own connection: of two channels to one place gRPC makes one, and that may be what has died.
        options: list[tuple[str, Any]] = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
        if is_loopback(split_address(self.address)[0]):
            # A proxy cannot reach this machine's own loopback, whatever http_proxy says.
            options.append(("grpc.enable_http_proxy", 0))
        if not self._encrypted:
            insecure = grpc.insecure_channel if secure is grpc.secure_channel else grpc.aio.insecure_channel
            return insecure(self.address, options=options)
        from edge_attention.trust.authorities import are_ours
        from edge_attention.trust.certificates import pem

        assert self._authorities is not None
        if are_ours(self._authorities):
            options.append(("grpc.ssl_target_name_override", SERVER_NAME))
        credentials = grpc.ssl_channel_credentials(pem(*self._authorities))
        return secure(self.address, credentials, options=options)
