"""Keys and values of the running rows, written in place at each row's own position.

Live rows always are the first slots, so a step reads a view and copies nothing; when a row leaves, the last one takes
its slot. Memory grows in buckets, by rows and by length.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Cache

_LENGTH_BUCKET = 64


class SlotCache:
    """(slots, kv_heads, length, head_dim) keys and values per layer, allocated when a layer first writes.

    Args:
        max_slots: rows at most. max_length: tokens per row at most.
    """

    def __init__(self, max_slots: int, max_length: int) -> None:
        self._max_slots = max_slots
        self._max_length = max_length
        self._slots = 0
        self._length = 0
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def reserve(self, slots: int, length: int) -> None:
        """Makes room; doubling keeps the copies at a constant share of all writes.

        Either all layers grow or, out of memory, none: the tensors are put in place after the last allocation.
        """
        if slots <= self._slots and length <= self._length:
            return
        new_slots = max(self._slots, min(self._max_slots, _power_of_two(slots)))
        new_length = max(self._length, min(self._max_length, max(_LENGTH_BUCKET, _power_of_two(length))))
        keys = {layer: _grown(old, new_slots, new_length) for layer, old in self.keys.items()}
        values = {layer: _grown(old, new_slots, new_length) for layer, old in self.values.items()}
        self.keys, self.values = keys, values
        self._slots, self._length = new_slots, new_length

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` tokens of one slot over another."""
        for store in (self.keys, self.values):
            for tensor in store.values():
                tensor[target, :, :length] = tensor[source, :, :length]

    def copy_from(self, other: SlotCache, target: int, length: int) -> None:
        """Copies the first `length` tokens of another cache's first slot into a slot of this one."""
        for index in other.keys:
            keys, values = self.layer(index, other.keys[index], other.values[index])
            keys[target, :, :length] = other.keys[index][0, :, :length]
            values[target, :, :length] = other.values[index][0, :, :length]

    def clear(self) -> None:
        """Gives all memory back."""
        self.keys, self.values = {}, {}
        self._slots = self._length = 0

    def layer(self, index: int, like_keys: Tensor, like_values: Tensor) -> tuple[Tensor, Tensor]:
        """The whole key and value tensors of one layer."""
        if index not in self.keys:
            # Zeros, not empty: a masked column still takes part as 0 × value, which must not be NaN.
            for store, like in ((self.keys, like_keys), (self.values, like_values)):
                store[index] = like.new_zeros(self._slots, like.shape[1], self._length, like.shape[3])
        return self.keys[index], self.values[index]


class StepCache(Cache):
    """What one forward pass sees of a `SlotCache`: the `past_key_values` of that pass.

    Args:
        first: slot of the batch's first row; the others follow.
        positions: (B,) positions to write to, or None for a prefill.
        start: where a prefill begins; what is there before it is read back.
        uniform_position: the one position of all rows, if it is the same, else None.
        key_length: columns of the view that a decode reads.
    """

    def __init__(
        self,
        cache: SlotCache,
        first: int,
        positions: Tensor | None = None,
        uniform_position: int | None = None,
        key_length: int = 0,
        start: int = 0,
    ) -> None:
        super().__init__(layers=[])
        self._cache = cache
        self._first = first
        self._positions = positions
        self._uniform = uniform_position
        self._key_length = key_length
        self._start = start
        self._place: tuple[int, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Writes the new tokens' keys and values; returns those that the new tokens may see.

        Args: (B, kv_heads, T, head_dim) each. Returns: a prefill's own, or (B, kv_heads, K, head_dim) views, K being
            start + T for a later piece of a prefill and `key_length` for a decode.
        """
        keys, values = self._cache.layer(layer_idx, key_states, value_states)
        count, _, length, _ = key_states.shape
        slots = slice(self._first, self._first + count)
        if self._positions is None:
            end = self._start + length
            keys[slots, :, self._start : end] = key_states
            values[slots, :, self._start : end] = value_states
            if self._start == 0:
                return key_states, value_states
            return keys[slots, :, :end], values[slots, :, :end]
        if self._uniform is not None:
            keys[slots, :, self._uniform] = key_states[:, :, 0]
            values[slots, :, self._uniform] = value_states[:, :, 0]
        else:
            places = self._places(keys, self._positions)
            for store, new in ((keys, key_states), (values, value_states)):
                store.view(-1, store.shape[3]).index_copy_(0, places, new.reshape(-1, store.shape[3]))
        return keys[slots, :, : self._key_length], values[slots, :, : self._key_length]

    def _places(self, keys: Tensor, positions: Tensor) -> Tensor:
        """(B·kv_heads,) rows of the flattened store where each row's new token goes; the same in like layers."""
        _, heads, capacity, _ = keys.shape
        if self._place is None or self._place[0] != heads:
            rows = torch.arange(self._first, self._first + len(positions), device=keys.device)
            head = torch.arange(heads, device=keys.device)
            at = (rows[:, None] * heads + head) * capacity + positions[:, None]
            self._place = (heads, at.flatten())
        return self._place[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._start if self._positions is None else self._key_length - 1


def _grown(old: Tensor, slots: int, length: int) -> Tensor:
    new = old.new_zeros(slots, old.shape[1], length, old.shape[3])
    new[: old.shape[0], :, : old.shape[2]] = old
    return new


def _power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()
