"""The base models users may name, and what is known of each."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import structlog

from app.exceptions import InvalidInput
from app.inference.cache import LoadingCache
from must_core.errors import UnknownModel
from must_core.models import ModelSupport, support_of, weights_at_hand

logger = structlog.get_logger(__name__)


@dataclass(frozen=True)
class CatalogEntry:
    """A base model by its public name, and the address open_clip loads it from."""

    name: str
    address: str


@dataclass(frozen=True, kw_only=True)
class ModelView:
    """What a base model supports; None where that cannot be known, because its address names nothing."""

    name: str
    is_default: bool
    masked_training: bool | None
    reason: str
    image_size: int | None
    patch_size: int | None
    weights_available: bool


class ModelCatalog:
    """Maps public names to addresses; a name that is not listed does not exist, whatever it looks like."""

    def __init__(self, models: Mapping[str, str], *, default: str) -> None:
        self._entries = {name: CatalogEntry(name, address) for name, address in models.items()}
        self._default = default
        self._supports: LoadingCache[str, ModelSupport] = LoadingCache(max(1, len(models)))

    def __iter__(self) -> Iterator[CatalogEntry]:
        """Entries in the operator's order."""
        return iter(self._entries.values())

    def get(self, name: str | None) -> CatalogEntry:
        """The entry of a name, or the default's; raises `InvalidInput` ``unknown_model``."""
        entry = self._entries.get(name or self._default)
        if entry is None:
            raise InvalidInput("unknown_model", "There is no base model of this name here.", param="base_model")
        return entry

    def describe(self, entry: CatalogEntry) -> ModelView:
        """What an entry supports, without loading it; may take a second the first time. Weights are looked for anew."""
        address, is_default = entry.address, entry.name == self._default
        try:
            support = self._supports.get(address, lambda: support_of(address))
        except UnknownModel as e:  # the operator's mistake, shown to users as what it means for them
            logger.warning("unknown_model", base_model=entry.name, detail=e.message)
            return ModelView(
                name=entry.name,
                is_default=is_default,
                masked_training=None,
                reason=e.message,
                image_size=None,
                patch_size=None,
                weights_available=False,
            )
        return ModelView(
            name=entry.name,
            is_default=is_default,
            masked_training=support.masked,
            reason=support.reason,
            image_size=support.image_size,
            patch_size=support.patch_size,
            weights_available=weights_at_hand(address),
        )
