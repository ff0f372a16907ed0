"""Seeds derived from what they are for, so that no random state needs to be kept."""

import numpy as np

MASKS, ORDER, VIEWS, STRONG_VIEWS, HELD_OUT, BOOTSTRAP, SIDES, AUDIT, AUDIT_INTERVAL = range(9)
"""What randomness is drawn for; the first part of a key."""


def derive_seed(*key: int) -> int:
    """A seed of 63 bits from a key of non-negative integers; different keys give unrelated seeds."""
    high, low = np.random.SeedSequence(key).generate_state(2)
    return (int(high) << 32 | int(low)) >> 1
