"""The service: HTTP, the job ledger, storage, inference."""

__version__ = "0.1.0"
