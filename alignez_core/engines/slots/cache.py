"""Keys and values of the running rows, written in place at each row's own position.

Live rows always are the first slots, so a step reads a view and copies nothing; when a row leaves, the last one takes
its slot. Memory grows in buckets, by rows and by length.

What it costs: a token takes 2 x layers x kv_heads x head_dim numbers, and memory is (rows, rounded up to a power of
two) x (longest row, rounded likewise, 64 at least): up to 4 times rows x longest row, whatever the others' length. One
row of 4096 tokens beside 63 of 50 takes 64 x 4096 places for 7246 tokens, 36 times as many; `max_cache_tokens` does
not bound that, it bounds the sum. Moving to larger memory holds both for a moment. Pages would bound the waste by one
page a row, at the price of a gather, or of a kernel of our own, in every layer of every step.

What comes back: `shrink` is asked by the runner now and then, and the scheduler clears the memory of an engine that has
been idle for some seconds. On a GPU it goes back to torch's allocator, not to the driver.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Cache

_LENGTH_BUCKET = 64
#: A place that no view reaches: the compiler makes a program of its own for a view of the whole.
_SPARE = 1
#: Memory shrinks when a part of this size would do, so that what has shrunk may double twice before it is as large.
_SHRINK_AT = 4


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
        #: Another whenever the tensors have moved in memory.
        self.version = 0
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def reserve(self, slots: int, length: int) -> None:
        """Makes room; doubling keeps the copies at a constant share of all writes.

        Either all layers grow or, out of memory, none: the tensors are put in place after the last allocation.
        """
        if slots <= self._slots and length <= self._length:
            return
        new_slots, new_length = self._bucket(slots, length)
        self._resize(max(self._slots, new_slots), max(self._length, new_length))

    def shrink(self, slots: int, length: int) -> bool:
        """Gives memory back, if so many slots of such length take a quarter of it or less; True if it did.

        What is in those slots up to that length stays.
        """
        new_slots, new_length = (
            min(new, have) for new, have in zip(self._bucket(slots, length), (self._slots, self._length), strict=True)
        )
        if _SHRINK_AT * new_slots * new_length > self._slots * self._length:
            return False
        self._resize(new_slots, new_length)
        return True

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
        self.version += 1

    def tensors(self) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values in layer order; none before the first prefill."""
        layers = range(len(self.keys))
        return [self.keys[layer] for layer in layers], [self.values[layer] for layer in layers]

    def _bucket(self, slots: int, length: int) -> tuple[int, int]:
        length = min(self._max_length, max(_LENGTH_BUCKET, _power_of_two(length)))
        return min(self._max_slots, _power_of_two(slots)), length

    def _resize(self, slots: int, length: int) -> None:
        keys = {layer: _resized(old, slots, length) for layer, old in self.keys.items()}
        values = {layer: _resized(old, slots, length) for layer, old in self.values.items()}
        self.keys, self.values = keys, values
        self._slots, self._length = slots, length
        self.version += 1

    def layer(self, index: int, like_keys: Tensor, like_values: Tensor) -> tuple[Tensor, Tensor]:
        """The whole key and value tensors of one layer."""
        if index not in self.keys:
            # Zeros, not empty: a masked column still takes part as 0 × value, which must not be NaN.
            for store, like in ((self.keys, like_keys), (self.values, like_values)):
                store[index] = like.new_zeros(self._slots, like.shape[1], self._length + _SPARE, like.shape[3])
        return self.keys[index], self.values[index]


class StepCache(Cache):
    """View of a `SlotCache` for one forward pass: its `past_key_values`.

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


class CompiledCache(Cache):
    """The `past_key_values` of a decode that `torch.compile` traces: row b is slot b, and every size is a variable.

    Args:
        keys, values: of each layer, (slots, kv_heads, length, head_dim).
        positions: (B,) where each row's new token goes. key_length: columns of the view that is read.
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor], positions: Tensor, key_length: int) -> None:
        super().__init__(layers=[])
        self._keys = keys
        self._values = values
        self._positions = positions
        self._key_length = key_length

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """As `StepCache.update`."""
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        count = key_states.shape[0]
        rows = torch.arange(count, device=keys.device)
        keys[rows, :, self._positions] = key_states[:, :, 0]
        values[rows, :, self._positions] = value_states[:, :, 0]
        return keys[:count, :, : self._key_length], values[:count, :, : self._key_length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._key_length - 1


def _resized(old: Tensor, slots: int, length: int) -> Tensor:
    new = old.new_zeros(slots, old.shape[1], length + _SPARE, old.shape[3])
    slots, length = min(slots, old.shape[0]), min(length, old.shape[2])
    new[:slots, :, :length] = old[:slots, :, :length]
    return new


def _power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()
