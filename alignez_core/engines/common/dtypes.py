"""The default number format of a model."""

from __future__ import annotations

import logging
import time
from functools import lru_cache

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig

from alignez_core.errors import InvalidInput

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AUTO = "auto"
#: Models below this many parameters compute in float32: their steps are too short to gain. persona-nano (3.4M) would
#: lose a fifth of its tokens per second at 64 rows, and a third alone (`bench.engine.step`, one thread).
SMALL = 32_000_000
#: Flags of `torch.cpu.get_capabilities()` (torch 2.13) without which bfloat16 products are emulated.
_NATIVE = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")
#: bfloat16 products must be this much faster than float32's to be worth their precision. `bench.engine.step` measured
#: 0.57 on an Intel Xeon (family 6, model 207) that has AVX512_BF16 but shows no AMX. On another machine with the same
#: flag a whole prefill of SmolLM2-135M was 4 times as fast in bfloat16, so the flag does not decide.
_WORTH = 1.3

_log = logging.getLogger(__name__)


def choose_dtype(dtype: str, config: PreTrainedConfig, device: str) -> str:
    """float32, bfloat16 or float16: what `dtype` says, or for "auto" what suits model and device.

    "auto" is float32 for a small model; otherwise bfloat16 on a CUDA device that has it, and on a CPU that has it and
    on which it is measured to be faster; otherwise float32.

    Raises: InvalidInput: an unknown dtype.
    """
    if dtype in DTYPES:
        return dtype
    if dtype != AUTO:
        raise InvalidInput("dtype", f"{dtype!r} is not one of {AUTO}, {', '.join(DTYPES)}")
    kind = device.partition(":")[0]
    if kind == "cuda":
        gains = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        gains = kind == "cpu" and native_bfloat16()
    if not gains or parameter_count(config) < SMALL or (kind == "cpu" and bfloat16_speedup() < _WORTH):
        return "float32"
    return "bfloat16"


def native_bfloat16() -> bool:
    """True when this CPU has instructions for bfloat16 products."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(flag, False) for flag in _NATIVE)


def parameter_count(config: PreTrainedConfig) -> int:
    """Parameters of the causal language model of a configuration; 0 when transformers can make none of it."""
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # loading the weights says what is wrong
        _log.debug("cannot count the parameters of a %s: %s", config.model_type, error)
        return 0
    return int(model.num_parameters())


@lru_cache(maxsize=1)
def bfloat16_speedup() -> float:
    """Time of a float32 matrix product over that of a bfloat16 one, on this CPU with torch's present threads.

    The flag alone does not say: with AVX512_BF16 but without AMX the bfloat16 product can take twice the time. The
    best of several interleaved runs is taken, which a busy machine changes little; about 0.1 s. Where the ratio is near
    the limit, two processes may choose differently: name the dtype there.
    """
    rows, weights = torch.ones(256, 1024), torch.ones(1024, 1024)
    operands = {dtype: (rows.to(dtype), weights.to(dtype)) for dtype in (torch.float32, torch.bfloat16)}
    best = dict.fromkeys(operands, float("inf"))
    with torch.inference_mode():
        for _ in range(6):
            for dtype, (left, right) in operands.items():
                best[dtype] = min(best[dtype], _seconds(left, right))
    speedup = best[torch.float32] / best[torch.bfloat16]
    _log.info("bfloat16 products take 1/%.2f of float32's time on this CPU", speedup)
    return speedup


def _seconds(left: Tensor, right: Tensor) -> float:
    began = time.perf_counter()
    torch.nn.functional.linear(left, right)
    return time.perf_counter() - began
