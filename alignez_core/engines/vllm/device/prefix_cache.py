"""Keeps edited keys and values apart in vLLM's prefix cache.

Under the position rule nothing before a prompt's last token depends on the profile, so those blocks carry no mark and
one system prompt is cached once for all users. A block that holds an edited position, or comes after one, is marked
with the plan's content hash: another profile, or another version of the same one, can never find it, and neither can a
later prompt that repeats the answer.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core import kv_cache_utils
from vllm.v1.request import Request

from alignez_core.engines.vllm.device.row_edit import KEY, edit_of

_ORIGINAL = "_alignez_original"


def install() -> None:
    """Wraps vLLM's own function. Safe to call twice."""
    original = kv_cache_utils.generate_block_hash_extra_keys
    if hasattr(original, _ORIGINAL):
        return

    def with_edit(
        request: Request, start_token_idx: int, end_token_idx: int, start_mm_idx: int
    ) -> tuple[tuple[Any, ...] | None, int]:
        keys, next_mm_idx = original(request, start_token_idx, end_token_idx, start_mm_idx)
        params = request.sampling_params
        edit = None if params is None else edit_of(params.extra_args)
        if edit is None or not edit.touches(end_token_idx):
            return keys, next_mm_idx
        return (*(keys or ()), (KEY, edit.sha256)), next_mm_idx

    setattr(with_edit, _ORIGINAL, original)
    kv_cache_utils.generate_block_hash_extra_keys = with_edit
