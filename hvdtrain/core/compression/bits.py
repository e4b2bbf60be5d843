"""Numbers in a byte: what implementations of the verbs have in common."""

from __future__ import annotations

import numpy as np

# Of int8; -128 has no counterpart.
LARGEST = 127
# Eight booleans lie in one int64, the first in its lowest byte. `eight * GATHER >> 56` has them in its lowest
# byte, the first highest: boolean i, at bit 8 i, is multiplied with bit 63 - 9 i, and no two products meet.
# Signed, for int64 arithmetic wraps around.
GATHER = 0x8040201008040201 - 2**64
# By byte: its eight booleans as 1 and -1, int8 (256, 8).
SIGNS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.int8) * 2 - 1
