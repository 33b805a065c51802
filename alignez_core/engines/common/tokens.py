"""A tokenizer as engines use it: prompts to ids, ids to text, and the prompt format that goes with it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from jinja2 import TemplateError
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from alignez_core.engines.base import Prompt, TokenLogprob
from alignez_core.engines.common.special_tokens import SpecialTokens, encode
from alignez_core.errors import InvalidInput
from alignez_core.prompts import ChatFormat, Message, PlainFormat, PromptFormat, Rendered

PromptFormatName = Literal["auto", "plain", "chat"]

_BROKEN = "\N{REPLACEMENT CHARACTER}"
#: The space before a word, and a byte, in SentencePiece vocabularies.
_WORD_OPENS = "\N{LOWER ONE EIGHTH BLOCK}"
_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def _byte_alphabet() -> dict[str, int]:
    """The printable characters that byte-level BPE writes bytes with, and these bytes.

    Source: `bytes_to_unicode` of GPT-2's `encoder.py`.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()


class TextTokens:
    """Ids of prompts and text of ids.

    Args:
        tokenizer: the model's.
        vocab_size: rows of the model's embedding; ids from outside must be below it.
        eos_ids: ids that end a sequence; the chat template's own end of a turn joins them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int, eos_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        # The Rust tokenizer without transformers' wrapper: a step of 64 streams decodes 64 times or more.
        self._fast = getattr(tokenizer, "backend_tokenizer", None)
        self._encodes = self._fast is not None and _encodes_alike(tokenizer)
        self._specials = SpecialTokens(tokenizer, self._apply_template if tokenizer.chat_template else None)
        added = dict(getattr(tokenizer, "added_tokens_decoder", {}))
        self._left_out = frozenset(number for number, entry in added.items() if entry.special)
        self._appends_eos = tokenizer.eos_token_id is not None and self._ends_with_eos("a")
        self.eos_ids = eos_ids | self._specials.end_of_turn

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt.

        What a prompt format rendered is tokenised as `Rendered` says. Other text is raw: it gets the special tokens
        that the tokenizer adds, but no second BOS and no EOS at its end. Ids are taken as they are.

        Raises: InvalidInput: an id that the model has no embedding for, or no token at all.
        """
        if isinstance(prompt, Rendered):
            ids = self._rendered_ids(prompt)
        elif isinstance(prompt, str):
            ids = self._raw_ids(prompt)
        else:
            ids = [int(token) for token in prompt]
        return self._checked(ids, "prompt")

    def continuation_ids(self, text: Prompt) -> list[int]:
        """As `prompt_ids`, without special tokens."""
        if isinstance(text, str):
            return self._checked(self._encode(text, add_special_tokens=False), "continuation")
        return self._checked([int(token) for token in text], "continuation")

    def stop_ids(self, stops: Sequence[str]) -> frozenset[int]:
        """Ids of the stop strings that are special tokens: as text they would never match."""
        return self._specials.stop_ids(stops)

    def text(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        if self._fast is not None:
            return str(self._fast.decode(list(ids), skip_special_tokens=True))
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def token_text(self, token: int) -> str:
        """Text of one token, special ones and its leading space included."""
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if isinstance(piece, str) and piece.startswith(_WORD_OPENS):
            # SentencePiece decoders drop the space that opens a text.
            return piece.replace(_WORD_OPENS, " ")
        return str(self._tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def token_bytes(self, token: int, *, first: bool) -> bytes:
        """The bytes that a token adds to an answer's text; none for special tokens, which text leaves out.

        Args:
            first: it is the answer's first token, whose leading space SentencePiece decoders drop.
        """
        if token in self._left_out:
            return b""
        piece, text = self._tokenizer.convert_ids_to_tokens(token), self.token_text(token)
        if isinstance(piece, str) and _BYTE_PIECE.fullmatch(piece) and text != piece:
            raw = bytes([int(piece[3:5], 16)])
        elif isinstance(piece, str) and _BROKEN in text and all(symbol in _BYTE_OF for symbol in piece):
            raw = bytes(_BYTE_OF[symbol] for symbol in piece)
        else:
            raw = text.encode()
        dropped = first and raw.startswith(b" ") and self.text([token]) == raw[1:].decode("utf-8", "replace")
        return raw[1:] if dropped else raw

    def logprob(
        self, token: int, logprob: float, *, first: bool, top: Iterable[tuple[int, float]] = ()
    ) -> TokenLogprob:
        """The entry of one token of an answer.

        Args:
            first: it is the answer's first token. top: alternatives, ids and log-probabilities.
        """
        alternatives = tuple(self.logprob(other, value, first=first) for other, value in top)
        return TokenLogprob(token, self.token_text(token), logprob, self.token_bytes(token, first=first), alternatives)

    def format(self, name: PromptFormatName) -> PromptFormat:
        """The prompt format: with "auto" the chat template if there is one, else plain text.

        Raises: InvalidInput: "chat" without a template, or another name.
        """
        if name not in ("auto", "plain", "chat"):
            raise InvalidInput("prompt_format", f"{name!r} is not one of auto, plain, chat")
        if name == "plain" or (name == "auto" and not self._tokenizer.chat_template):
            return PlainFormat()
        if not self._tokenizer.chat_template:
            raise InvalidInput("prompt_format", "chat was asked for, but the tokenizer has no chat template")
        return ChatFormat(self._render)

    def _rendered_ids(self, prompt: Rendered) -> list[int]:
        text, breaks = str(prompt), self._specials.breaks(prompt)
        if not breaks:
            return self._raw_ids(text) if prompt.adds_special else self._encode(text, add_special_tokens=False)
        if self._encodes and self._fast is not None:
            ids = self._specials.marked_ids(self._fast, text, breaks, add_special_tokens=prompt.adds_special)
            return ids[:-1] if prompt.adds_special and self._appends_eos else ids
        # Tokenised piece by piece: a tokenizer that is more than its Rust half cannot be copied with one token more.
        edges = [*breaks, len(text)]
        ids = self._raw_ids(text[: edges[0]]) if prompt.adds_special else self._encode(text[: edges[0]])
        for start, end in itertools.pairwise(edges):
            ids += self._encode(text[start:end])
        return ids

    def _raw_ids(self, text: str) -> list[int]:
        ids = self._encode(text, add_special_tokens=True)
        if self._appends_eos:
            ids = ids[:-1]
        bos, bos_text = self._tokenizer.bos_token_id, self._tokenizer.bos_token
        if bos is not None and ids[:2] == [bos, bos] and text.startswith(bos_text):
            ids = ids[1:]
        return ids

    def _ends_with_eos(self, text: str) -> bool:
        return bool(self._encode(text, add_special_tokens=True)[-1] == self._tokenizer.eos_token_id)

    def _encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        if self._encodes and self._fast is not None:
            return encode(self._fast, text, add_special_tokens=add_special_tokens)
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return ids

    def _render(self, messages: Sequence[Message]) -> Rendered:
        turns = [{**message, "content": self._specials.interrupted(message["content"])} for message in messages]
        return self._specials.rendered(self._rendered_turns(turns))

    def _rendered_turns(self, turns: Sequence[Mapping[str, str]]) -> str:
        try:
            return self._apply_template(turns)
        except TemplateError:
            # Some templates (Gemma's) refuse a system turn; its text then opens the first user turn.
            if len(turns) < 2 or turns[0]["role"] != "system" or turns[1]["role"] != "user":
                raise
            merged = {"role": "user", "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}
            return self._apply_template([merged, *turns[2:]])

    def _apply_template(self, turns: Sequence[Mapping[str, str]]) -> str:
        messages = [dict(turn) for turn in turns]
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _checked(self, ids: list[int], field: str) -> list[int]:
        if not ids:
            raise InvalidInput(field, "has no tokens")
        if not all(0 <= token < self._vocab_size for token in ids):
            raise InvalidInput(field, f"holds a token id outside 0 to {self._vocab_size - 1}")
        return ids


#: Words, white space, other scripts and what looks like a special token.
_SAMPLES = ("", " a  b\n\tc ", "Ünïcode 漢字 🙂", "<s> </s> <|endoftext|> <|user|> [INST]", "x" * 60)


def _encodes_alike(tokenizer: PreTrainedTokenizerBase) -> bool:
    """True if the Rust tokenizer alone gives the ids of transformers' wrapper.

    The wrapper takes a single text as a batch of one, for which the Rust half wakes its threads: 1 ms in a server,
    where the ids themselves take 0.05. A class may do more than call Rust, and a tokenizer.json may say to cut or to
    pad, which the wrapper switches off.
    """
    backend = tokenizer.backend_tokenizer
    tokenizer.encode("a")  # switches cutting and padding off for good
    if backend.truncation is not None or backend.padding is not None:
        return False
    samples = (*_SAMPLES, " ".join(map(str, tokenizer.all_special_tokens)))
    return all(
        backend.encode(text, add_special_tokens=special).ids == tokenizer.encode(text, add_special_tokens=special)
        for text in samples
        for special in (True, False)
    )


def eos_ids(
    tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, generation: GenerationConfig | None
) -> frozenset[int]:
    """Every id that ends an answer: the tokenizer's and those that the model's own configurations add."""
    ids: set[int] = set()
    for source in (tokenizer, config, config.get_text_config(), generation):
        value = getattr(source, "eos_token_id", None)
        ids.update(value if isinstance(value, list) else [] if value is None else [value])
    return frozenset(ids)
