"""Idempotency-Keys between the layers."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class KeyedRequest:
    """A creating request that carries a key."""

    tenant: str
    key: str
    digest: str
    """SHA-256 of what it asks for."""


@dataclass(frozen=True, kw_only=True)
class Hold:
    """A key in the hands of the request that is at work."""

    tenant: str
    key: str
    token: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a creating request that succeeded is told, as it is sent."""

    status_code: int
    headers: Mapping[str, str]
    body: str
    """JSON."""
    is_replay: bool = False
    """It was told before."""
