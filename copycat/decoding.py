"""What decoding JSON of somebody else's raises."""

from __future__ import annotations

import msgspec

__all__ = ["UNREADABLE"]

#: Bytes that are no text, and brackets without end, are none of msgspec's own errors.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
