"""Base models: what users may name, and what each supports."""

from collections.abc import Sequence

from app.inference.catalog import ModelCatalog, ModelView


class ModelService:
    """What the product knows of base models."""

    def __init__(self, *, catalog: ModelCatalog) -> None:
        self._catalog = catalog

    def list(self) -> Sequence[ModelView]:
        """All of them, in the operator's order; takes seconds the first time."""
        return [self._catalog.describe(entry) for entry in self._catalog]
