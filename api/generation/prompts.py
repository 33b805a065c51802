"""Token ids of conversations and prompts, made without holding up the event loop or filling the memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID
from weakref import WeakValueDictionary

from anyio import CapacityLimiter, Lock, to_thread

from alignez_core.errors import ContextTooLong
from api.generation.personalise import BARE, Personalisation
from api.generation.protocol import ChatMessage, turns_of
from api.http.errors import ApiError

if TYPE_CHECKING:
    from alignez_core.engines.base import Engine
    from alignez_core.prompts import Message

T = TypeVar("T")

#: Beyond this many characters tokenising could hold the event loop up noticeably.
_INLINE = 8000
#: Characters per token of the context above which a text is refused and never tokenised. A single token may be longer
#: (a run of spaces), but no text consists of such tokens: English has 4 to 5 characters per token, indented code and
#: tables have up to 10.
CHARACTERS_PER_TOKEN = 16


class Prompts:
    """Makes the prompts of one engine.

    Tokenising takes about 100 bytes of memory per character. So texts that are long enough to need a thread are
    tokenised one at a time, for all callers together, and tenants (`tenant_id` of each method) take turns.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._long_texts = CapacityLimiter(1)
        # One text of each tenant at most waits for the thread, which serves in the order of arrival.
        self._turns: WeakValueDictionary[UUID, Lock] = WeakValueDictionary()

    def check_length(self, characters: int, param: str) -> None:
        """Refuses a text that is over the context for certain, before anything is made of it.

        Args:
            characters: of one whole prompt. param: the field that holds it.
        Raises: ApiError: 400 `context_length_exceeded`.
        """
        context = self._engine.info.context_length
        limit = context * CHARACTERS_PER_TOKEN
        if characters > limit:
            raise ApiError(
                400, ContextTooLong.code, f"This model's maximum context length is {context} tokens, but {param} has "
                f"{characters} characters, over the limit of {limit}; shorten it", param=param,
            )  # fmt: skip

    async def chat(
        self, tenant_id: UUID, messages: Sequence[ChatMessage], personal: Personalisation = BARE
    ) -> tuple[list[int], Personalisation]:
        """Token ids of the conversation, answer cue included, after the profile's prefix.

        Returns: the ids, and the personalisation that knows how many of them its prefix costs.
        Raises: ApiError: the model's chat template refuses the order of the roles.
        """
        turns = turns_of(messages)
        characters = sum(len(turn["content"]) for turn in turns)
        bare = await self._run(tenant_id, characters, lambda: self._rendered(turns))
        if personal.prefix is None:
            return bare, personal
        whole = personal.prefix.apply(turns)
        ids = await self._run(tenant_id, characters, lambda: self._rendered(whole))
        return ids, replace(personal, prefix_tokens=max(0, len(ids) - len(bare)))

    async def text(self, tenant_id: UUID, prompt: str | list[int]) -> list[int]:
        """Token ids of a text completion's prompt; ids are checked against the vocabulary.

        Raises: ApiError: an id outside it.
        """
        if isinstance(prompt, str):
            return await self._run(tenant_id, len(prompt), lambda: self._engine.tokenize(prompt))
        size = self._engine.info.vocab_size
        if max(prompt) >= size:
            raise ApiError(400, "invalid_prompt", f"token {max(prompt)} is not below {size}", param="prompt")
        return prompt

    async def prefixed(
        self, tenant_id: UUID, prompt: str | list[int], ids: list[int], personal: Personalisation
    ) -> tuple[list[int], Personalisation]:
        """A text completion's prompt after the profile's prefix, as `chat` has a conversation's.

        Args:
            ids: of the prompt without the prefix.
        Raises: ApiError: a model that takes prefixes in chat turns only.
        """
        if personal.prefix is None:
            return ids, personal
        form = self._engine.prompt_format
        if form.name == "chat":
            raise ApiError(
                400, "prefix_needs_chat", f"profile {personal.profile!r} puts a text before conversations, which this "
                "model reads in chat turns only; use /v1/chat/completions", param="model",
            )  # fmt: skip
        opening = form.render(personal.prefix.apply([{"role": "user", "content": ""}])).removesuffix(form.wrap(""))
        if isinstance(prompt, str):
            whole = await self.text(tenant_id, opening + prompt)
        else:
            whole = [*await self.text(tenant_id, opening), *ids]
        return whole, replace(personal, prefix_tokens=max(0, len(whole) - len(ids)))

    def _rendered(self, turns: Sequence[Message]) -> list[int]:
        try:
            text = self._engine.prompt_format.render(turns)
        except Exception as error:  # templates are the model's own code and raise what they like
            raise ApiError(
                400, "invalid_messages", f"the model's chat template refuses these messages: {str(error)[:200]}",
                param="messages",
            ) from error  # fmt: skip
        return self._engine.tokenize(text)

    async def _run(self, tenant_id: UUID, characters: int, read: Callable[[], T]) -> T:
        if characters < _INLINE:
            return read()
        async with self._turns.setdefault(tenant_id, Lock()):
            return await to_thread.run_sync(read, limiter=self._long_texts)
