"""The special tokens of a tokenizer: which texts they are, where they stand in a text, and how to keep them apart.

A tokenizer reads the text of a special token as that token wherever it stands. A message that holds such a text could
end its own turn and open another, so in messages it is interrupted: a mark is put behind its first character, the
tokenizer (a copy that knows the mark as a token) reads the whole prompt at once, and the mark's ids are dropped. All
other tokens are those of the whole text, as the model was trained on it.
"""

from __future__ import annotations

import itertools
import re
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

from jinja2 import TemplateError
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from alignez_core.prompts import Message, Rendered

Template = Callable[[Sequence[Mapping[str, str]]], str]


class SpecialTokens:
    """Special tokens of one tokenizer. Safe to use from any thread.

    Args:
        tokenizer: the model's.
        template: its chat template, applied; None: it has none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template | None) -> None:
        added = dict(getattr(tokenizer, "added_tokens_decoder", {}))
        self.ids = {token.content: number for number, token in added.items() if token.special}
        #: Digits only, because a template may change case or escape; nobody can guess them.
        self._mark = str(10**31 + secrets.randbelow(9 * 10**31))
        self._lock = threading.Lock()
        self._marked: tuple[Tokenizer, int | None] | None = None
        self.end_of_turn: frozenset[int] = frozenset()
        others = {t.content: n for n, t in added.items() if not t.special and len(t.content.strip()) > 1}
        for pieces in _turns(template) if template else ():
            # What a template writes as a token is one, whatever its flag says.
            self.ids |= {text: number for text, number in others.items() if any(text in piece for piece in pieces)}
            after = pieces[_AFTER_ANSWER].lstrip()
            ends = [text for text in self.ids if after.startswith(text)]
            if ends and max(ends, key=len) != tokenizer.bos_token:
                self.end_of_turn |= {self.ids[max(ends, key=len)]}
        texts = sorted((text for text in self.ids if len(text) > 1), key=len, reverse=True)
        self._beginnings = sorted({text[:2] for text in texts})
        # A look ahead finds overlapping ones too: interrupting one could leave the other whole.
        self._pattern = re.compile(f"(?=({'|'.join(map(re.escape, texts))}))") if texts else None

    def interrupted(self, content: str) -> str:
        """A message's content with the mark in each special token's text; most contents are as they were."""
        breaks = [start + 1 for start, _ in self._found(content)]
        return self._with_marks(content, breaks) if breaks else content

    def rendered(self, text: str) -> Rendered:
        """A template's output without the marks, knowing where they were."""
        pieces = text.split(self._mark)
        if len(pieces) == 1:
            return Rendered(text)
        plain, at = [], 0
        for piece in pieces[:-1]:
            at += len(piece)
            plain.append((max(at - 1, 0), at + 1))
        return Rendered("".join(pieces), plain)

    def breaks(self, prompt: Rendered) -> list[int]:
        """Offsets behind the first character of each special token's text that is plain text, ascending."""
        found: list[int] = []
        spans = list(prompt.plain)
        for start, end in self._found(prompt) if spans else ():
            while spans and spans[0][1] <= start:
                spans.pop(0)
            if spans and spans[0][0] < end:
                found.append(start + 1)
        return found

    def marked_ids(
        self, backend: Tokenizer, text: str, breaks: Sequence[int], *, add_special_tokens: bool
    ) -> list[int]:
        """Ids of a text whose special tokens are interrupted at these offsets."""
        with self._lock:
            if self._marked is None:
                copy = Tokenizer.from_str(backend.to_str())
                copy.add_tokens([AddedToken(self._mark, normalized=False)])
                self._marked = copy, copy.token_to_id(self._mark)
            copy, mark = self._marked
        ids = encode(copy, self._with_marks(text, breaks), add_special_tokens=add_special_tokens)
        return [token for token in ids if token != mark]

    def stop_ids(self, stops: Iterable[str]) -> frozenset[int]:
        """Ids of the stop strings that are special tokens; decoded text never holds those."""
        return frozenset(self.ids[stop] for stop in stops if stop in self.ids)

    def _found(self, text: str) -> list[tuple[int, int]]:
        """(start, end) of every special token's text, ascending."""
        if self._pattern is None or not any(beginning in text for beginning in self._beginnings):
            return []
        return [match.span(1) for match in self._pattern.finditer(text)]

    def _with_marks(self, text: str, breaks: Sequence[int]) -> str:
        edges = [0, *breaks, len(text)]
        return self._mark.join(text[a:b] for a, b in itertools.pairwise(edges))


def encode(backend: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """Token ids of a text, by the Rust tokenizer alone."""
    if len(text) < _LONG_TEXT:
        return list(backend.encode(text, add_special_tokens=add_special_tokens).ids)
    # `encode` holds the interpreter's lock all the time, a second for a million characters, and needs twice the memory.
    return list(backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)


#: Characters from which the millisecond that a batch takes to wake its threads does not matter.
_LONG_TEXT = 4000

#: Contents of a conversation that is rendered once to see what a template writes around them.
_PROBES = ("4071936825140", "4071936825141", "4071936825142")
_AFTER_ANSWER = 2  #: which piece of the template follows the assistant's content


def _turns(template: Template) -> list[list[str]]:
    """Texts that a template writes before, between and after user, assistant and user; empty if it refuses them."""
    turns: list[Message] = [
        {"role": role, "content": content} for role, content in zip(("user", "assistant", "user"), _PROBES, strict=True)
    ]
    try:
        text = template(turns)
    except (TemplateError, TypeError, ValueError):
        return []
    pieces = re.split("|".join(_PROBES), text)
    return [pieces] if len(pieces) == len(_PROBES) + 1 else []
