"""Between two classifiers, weight by weight (WiSE-FT; Wortsman et al., CVPR 2022)."""

from collections.abc import Mapping
from copy import deepcopy
from types import MappingProxyType

import torch

from must_core.student import Student

STATIONS: Mapping[str, float] = MappingProxyType({"quarter_way": 0.25, "half_way": 0.5, "three_quarters_way": 0.75})
"""Shares of the way from zero-shot to the teacher, by the names that candidates have."""


def between(zero_shot: Student, adapted: Student, share: float) -> Student:
    """A classifier with every weight this share of the way from one's to the other's; both stay as they are.

    What only training uses (mask token, decoder) is mixed as well and means nothing.
    """
    middle = deepcopy(adapted)
    with torch.no_grad():
        for mine, theirs in zip(middle.parameters(), zero_shot.parameters(), strict=True):
            mine.lerp_(theirs.to(mine.device), 1 - share)
    return middle
