"""SHA-256 digests of contents."""

import hashlib


def sha256(content: bytes) -> str:
    """SHA-256 hex of a content.

    >>> sha256(b"abc")[:16]
    'ba7816bf8f01cfea'
    """
    return hashlib.sha256(content).hexdigest()


def require_digest(content: bytes, digest: str) -> bytes:
    """The content; ValueError unless it has this SHA-256 hex."""
    if sha256(content) != digest:
        raise ValueError("was changed")
    return content
