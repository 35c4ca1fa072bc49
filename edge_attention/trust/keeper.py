"""Keeps an identity alive: renews it on a thread of its own, and enrols again where it may."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from edge_attention.core.errors import EdgeAttentionError, Revoked
from edge_attention.core.transitions import told
from edge_attention.trust.certificates import ends, issued, moment
from edge_attention.trust.identity import Identity
from edge_attention.trust.renewal import Renewal

log = logging.getLogger(__name__)

LOOK_SECONDS = 60.0
"""How often the clock is looked at, which may have been set."""


class Keeper:
    """Renews `identity` in time, until `close`.

    Args:
        renew: gets a new certificate for an identity.
        enrol: enrols anew, where there is a token; None: that cannot be done.
        changed: called with each new identity, on this thread.
    """

    def __init__(
        self,
        identity: Identity,
        renew: Callable[[Identity], Identity],
        enrol: Callable[[], Identity] | None,
        changed: Callable[[Identity], None],
    ) -> None:
        self.identity = identity
        self._renew = renew
        self._enrol = enrol
        self._changed = changed
        certificate = identity.certificate
        self._renewal = Renewal(
            issued(certificate), ends(certificate), random.random, time.time(), time.monotonic()
        )
        self._stop = threading.Event()
        self._forgotten = False
        self._thread = threading.Thread(target=self._run, name="certificate", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()

    def forget(self) -> None:
        """`close` in a while, within LOOK_SECONDS: for finalizers, which may take no lock."""
        self._forgotten = True

    def _run(self) -> None:
        renewal = self._renewal
        # Looked at now and then: a clock may be set meanwhile.
        while not self._stop.wait(min(max(renewal.wait(time.time(), time.monotonic()), 0.05), LOOK_SECONDS)):
            if self._forgotten:
                return
            now, steady = time.time(), time.monotonic()
            if renewal.ended(now) and self._enrol is None:
                # Nobody renews one that has ended. Should the clock be wrong, that may change.
                renewal.failed(now, steady)
            elif renewal.step(now, steady) and not self._step():
                return

    def _step(self) -> bool:
        """One try. False if there is no use in another."""
        try:
            self.identity = self._again()
        except (EdgeAttentionError, OSError) as error:
            ended = moment(self._renewal.ends)
            log.warning("the certificate, which ends at %s, was not renewed: %s", ended, error)
            self._renewal.failed(time.time(), time.monotonic())
            log.debug("it came to this so: %s", told(self._renewal.transitions))
            return not isinstance(error, Revoked)
        certificate = self.identity.certificate
        self._renewal.renewed(issued(certificate), ends(certificate), time.time(), time.monotonic())
        log.info("the certificate was renewed, until %s", moment(ends(certificate)))
        self._changed(self.identity)
        return True

    def _again(self) -> Identity:
        if self._enrol is not None and self._renewal.ended(time.time()):
            return self._enrol()
        return self._renew(self.identity)
