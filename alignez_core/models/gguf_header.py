"""Reader of the header of a GGUF file, which refuses damaged files before the conversion.

`gguf.GGUFReader` (0.19) reads past the end of a truncated file without an error, and it accepts any array length in a
damaged one. This reader checks every length against the size of the file. It reads no tensors.

Source: the GGUF specification, github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alignez_core.errors import ModelNotFound

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
#: Bytes of each scalar value type.
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_UINT32 = 4
_DEFAULT_ALIGNMENT = 32
_MAX_NESTING = 4
_MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class GGUFHeader:
    """Header of a GGUF file.

    Args:
        architecture: llama.cpp's name, such as "llama".
        tensors: number of tensors.
        quantisations: names of the tensors' number formats, sorted.
    """

    architecture: str
    tensors: int
    quantisations: tuple[str, ...]


def read_header(file: Path) -> GGUFHeader:
    """The header of a GGUF file. Checks that all tensors lie within the file and can be dequantised.

    Raises: ModelNotFound: the file is missing, no GGUF file, damaged or truncated, or its number format is not
        supported; the message is one line with file, reason and remedy.
    """
    try:
        with file.open("rb") as stream:
            if stream.read(4) != _MAGIC:
                raise ModelNotFound(f"{file} is no GGUF file; give a .gguf file, a model directory or a hub id")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _read(_Cursor(content))
    except _Unsupported as error:
        raise ModelNotFound(f"{file} cannot be used: {error}; take another GGUF of this model, such as Q8_0") from None
    except _Damaged as error:
        raise ModelNotFound(f"{file} is damaged or truncated: {error}; download or copy it again") from None
    except OSError as error:
        raise ModelNotFound(f"cannot read {file} ({error.strerror}); give a readable .gguf file") from None


class _Damaged(ValueError):
    """The bytes are no GGUF header, or a tensor ends after the end of the file."""


class _Unsupported(ValueError):
    """A valid file in an unsupported format."""


class _Cursor:
    """A read position that cannot pass the end of the file."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self.at = len(_MAGIC)
        self.size = len(content)

    def skip(self, count: int) -> None:
        if count > self.size - self.at:
            raise _Damaged(f"{count} bytes should follow byte {self.at}, but the file ends at {self.size}")
        self.at += count

    def integer(self, layout: str) -> int:
        begin = self.at
        self.skip(struct.calcsize(layout))
        return int(struct.unpack_from(layout, self._content, begin)[0])

    def string(self) -> str:
        length = self.integer("<Q")
        begin = self.at
        self.skip(length)
        try:
            return self._content[begin : self.at].decode()
        except UnicodeDecodeError:
            raise _Damaged(f"the name at byte {begin} is not UTF-8") from None


def _read(cursor: _Cursor) -> GGUFHeader:
    version = cursor.integer("<I")
    if version not in _VERSIONS:
        order = " (big-endian)" if version & 0xFFFF == 0 else ""
        raise _Unsupported(f"GGUF version {version}{order} is not one of {_VERSIONS}")
    tensors, entries = cursor.integer("<Q"), cursor.integer("<Q")
    architecture, alignment = "", _DEFAULT_ALIGNMENT
    for _ in range(entries):
        key, kind = cursor.string(), cursor.integer("<I")
        if key == "general.architecture" and kind == _STRING:
            architecture = cursor.string()
        elif key == "general.alignment" and kind == _UINT32:
            alignment = cursor.integer("<I")
        else:
            _skip_value(cursor, kind)
    if not architecture:
        raise _Damaged("it has no general.architecture")
    if alignment < 1:
        raise _Damaged("its alignment is 0")
    if not tensors:
        raise _Damaged("it holds no tensors")
    names = _check_tensors(cursor, tensors, alignment)
    return GGUFHeader(architecture, tensors, tuple(sorted(names)))


def _skip_value(cursor: _Cursor, kind: int, nesting: int = 0) -> None:
    if kind in _SCALARS:
        cursor.skip(_SCALARS[kind])
    elif kind == _STRING:
        cursor.skip(cursor.integer("<Q"))
    elif kind == _ARRAY and nesting < _MAX_NESTING:
        element, length = cursor.integer("<I"), cursor.integer("<Q")
        if element in _SCALARS:
            cursor.skip(_SCALARS[element] * length)
        else:
            for _ in range(length):  # each element takes bytes, so a wrong length fails at the end of the file
                _skip_value(cursor, element, nesting + 1)
    else:
        raise _Damaged(f"value type {kind} at byte {cursor.at} does not exist")


def _check_tensors(cursor: _Cursor, count: int, alignment: int) -> set[str]:
    """Names of the tensors' number formats; checks that all tensors lie within the file."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    names, ends = set[str](), list[tuple[int, str]]()
    for name, elements, number, offset in _tensor_entries(cursor, count):
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise _Unsupported(f"tensor {name} has the unknown quantisation {number}") from None
        if kind.name not in names and not _can_dequantise(kind):
            raise _Unsupported(f"quantisation {kind.name} (tensor {name}) is not supported")
        names.add(kind.name)
        block, size = GGML_QUANT_SIZES[kind]
        ends.append((offset + elements * size // block, name))
    begin = -(-cursor.at // alignment) * alignment
    end, last = max(ends)
    if begin + end > cursor.size:
        raise _Damaged(f"tensor {last} ends at byte {begin + end}, the file at {cursor.size}")
    return names


def _tensor_entries(cursor: _Cursor, count: int) -> Iterator[tuple[str, int, int, int]]:
    """(name, elements, number of the format, offset into the tensor section) of each tensor."""
    for _ in range(count):
        name, dimensions = cursor.string(), cursor.integer("<I")
        if dimensions > _MAX_DIMENSIONS:
            raise _Damaged(f"tensor {name} has {dimensions} dimensions")
        elements = 1
        for _ in range(dimensions):
            elements *= cursor.integer("<Q")
        yield name, elements, cursor.integer("<I"), cursor.integer("<Q")


def _can_dequantise(kind: GGMLQuantizationType) -> bool:
    import numpy as np
    from gguf import GGML_QUANT_SIZES, dequantize

    try:
        dequantize(np.zeros((1, int(GGML_QUANT_SIZES[kind][1])), dtype=np.uint8), kind)
    except NotImplementedError:
        return False
    return True
