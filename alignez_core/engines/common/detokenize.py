"""Incremental decoding of token ids, which withholds incomplete characters and possible beginnings of stop strings.

The pieces of an `IncrementalText`, joined, equal the whole text, which `full_text` decodes at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

_BROKEN = "\N{REPLACEMENT CHARACTER}"
#: A character has at most 4 bytes, so at most 4 byte tokens; more tokens without a whole one never become one.
_LONGEST_CHARACTER = 4


class IncrementalText:
    """Text of one answer.

    Args:
        decode: ids to text, special tokens left out.
        stop: strings that end the text; it is cut before them.
    """

    def __init__(self, decode: Decode, stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._longest_stop = max((len(stop) for stop in stop), default=0)
        self._ids: list[int] = []
        # Tokens from `_context` on are decoded together, because a token's text can depend on the one before it; the
        # text of those before `_read` is known.
        self._context = 0
        self._read = 0
        self._known = 0
        self._pending = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that this token made certain; empty while it is held back."""
        self._ids.append(token)
        text = self._decode(self._ids[self._context :])
        if text.endswith(_BROKEN) and len(self._ids) - self._read < _LONGEST_CHARACTER:
            return ""
        return self._release(text)

    def finish(self) -> str:
        """Text that was held back, once no more tokens come."""
        text = ""
        if self._read < len(self._ids):
            text = self._release(self._decode(self._ids[self._context :]))
        text, self._pending = text + self._pending, ""
        return text

    def _release(self, text: str) -> str:
        fresh = text[self._known :]
        self._context, self._read = self._read, len(self._ids)
        self._known = len(self._decode(self._ids[self._context :]))
        return self._cut(fresh)

    def _cut(self, fresh: str) -> str:
        if self.stopped or not self._stop:
            return "" if self.stopped else fresh
        text = self._pending + fresh
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._pending = True, ""
            return text[: min(found)]
        held = self._possible_stop(text)
        self._pending = text[len(text) - held :]
        return text[: len(text) - held]

    def _possible_stop(self, text: str) -> int:
        """Length of the longest suffix of `text` that is a prefix of a stop string."""
        for length in range(min(self._longest_stop - 1, len(text)), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stop):
                return length
        return 0


def full_text(decode: Decode, ids: Sequence[int]) -> str:
    """The text of all ids, equal to what `IncrementalText` gives piece by piece."""
    text = decode(ids)
    if _BROKEN not in text:
        return text
    # Decoders differ in how they mark broken bytes in a long run and in a short one.
    pieces = IncrementalText(decode)
    return "".join([*[pieces.add(token) for token in ids], pieces.finish()])
