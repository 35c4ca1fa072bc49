"""What digests of a dataset tell: one as large, of the same key, is the same data or is other data.

Each node makes them with a key of its own, and a node whose store was emptied makes another key: of two
digests by different keys nothing is known. So a digest begins with the name of its key.
"""

from __future__ import annotations

__all__ = ["DIGEST_LENGTH", "named_digest", "tell_other_data"]

DIGEST_LENGTH = 64
_NAME = 16
"""Characters of hex of the key's name, before those of the digest itself."""


def named_digest(key_name: bytes, digest: bytes) -> str:
    """What a node says: DIGEST_LENGTH characters of hex, of an HMAC of the key's name and one of the data."""
    return key_name.hex()[:_NAME] + digest.hex()[: DIGEST_LENGTH - _NAME]


def tell_other_data(was: str, now: str) -> bool:
    """Whether two digests say that a dataset is another than it was; "" says nothing."""
    return bool(was and now) and was[:_NAME] == now[:_NAME] and was != now
