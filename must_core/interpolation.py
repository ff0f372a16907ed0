"""Between two classifiers, weight by weight (WiSE-FT; Wortsman et al., CVPR 2022)."""

from copy import deepcopy

import torch

from must_core.student import Student


def half_way(zero_shot: Student, adapted: Student) -> Student:
    """A classifier whose every weight is the mean of the two's; both stay as they are.

    What only training uses (mask token, decoder) is mixed as well and means nothing.
    """
    middle = deepcopy(adapted)
    with torch.no_grad():
        for mine, theirs in zip(middle.parameters(), zero_shot.parameters(), strict=True):
            mine.lerp_(theirs.to(mine.device), 0.5)
    return middle
