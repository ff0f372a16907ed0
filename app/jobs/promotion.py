"""Which classifier a finished job answers with: the adapted one, or zero-shot. Pure: no database, no clock."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any


class Promotion(StrEnum):
    """Who decides that the adapted classifier becomes the job's."""

    AUTO = "auto"
    """The guard's verdict; a person may overrule a refusal."""
    MANUAL = "manual"
    """A person, once the job has succeeded."""
    NEVER = "never"
    """Nobody: the adapted classifier is only kept."""


def answers_adapted(promotion: Promotion, verdict: Mapping[str, Any] | None) -> bool:
    """Whether a job answers with its adapted classifier as soon as that is published.

    Without a ``verdict`` nothing speaks against it.
    """
    return promotion is Promotion.AUTO and (verdict is None or verdict["outcome"] == "adapted")
