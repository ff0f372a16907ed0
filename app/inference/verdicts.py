"""The guard's verdict in words: must_core's, so that a page and a command line say the same."""

from must_core.guard.verdict import Outcome, headline

__all__ = ["Outcome", "headline"]
