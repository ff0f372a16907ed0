"""The base models users may name, and what is known of each."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from app.exceptions import InvalidInput


@dataclass(frozen=True)
class CatalogEntry:
    """A base model by its public name, and the address open_clip loads it from."""

    name: str
    address: str


class ModelCatalog:
    """Maps public names to addresses; a name that is not listed does not exist, whatever it looks like."""

    def __init__(self, models: Mapping[str, str], *, default: str) -> None:
        self._entries = {name: CatalogEntry(name, address) for name, address in models.items()}
        self._default = default

    def __iter__(self) -> Iterator[CatalogEntry]:
        """Entries in the operator's order."""
        return iter(self._entries.values())

    def get(self, name: str | None) -> CatalogEntry:
        """The entry of a name, or the default's; raises `InvalidInput` ``unknown_model``."""
        entry = self._entries.get(name or self._default)
        if entry is None:
            raise InvalidInput("unknown_model", "There is no base model of this name here.", param="base_model")
        return entry
