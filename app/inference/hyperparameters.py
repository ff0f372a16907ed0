"""Hyper-parameters as must_core checks them, in the service's errors."""

from collections.abc import Mapping
from typing import Any

from app.exceptions import InvalidInput
from must_core import config
from must_core.errors import InvalidConfig


def check_hyperparameters(requested: Mapping[str, Any]) -> None:
    """Check each value by itself; raises `InvalidInput` naming the one that is wrong."""
    try:
        config.check_hyperparameters(requested)
    except InvalidConfig as e:
        raise InvalidInput(e.code, e.message, param=e.param) from e
