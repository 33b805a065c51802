"""Public identifiers, made here and not in the database (which needs no pgcrypto then)."""

from __future__ import annotations

import os
import time
import uuid


def new_id() -> uuid.UUID:
    """A UUID version 7 (RFC 9562): 48 bits of milliseconds, then 74 random bits.

    Ids made later sort later, so a list can be paged by id, and new rows go to the end of an index.
    """
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return uuid.UUID(int=value & (1 << 128) - 1)
