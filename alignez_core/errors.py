"""Errors of the numerical core. They carry facts; `api/http/errors.py` maps them to HTTP status codes."""

from __future__ import annotations

from collections.abc import Callable


class AlignezError(Exception):
    """Base class of the core's errors."""

    #: Stable, machine-readable name; failed jobs store it.
    code = "alignez_error"

    def __reduce__(self) -> tuple[Callable[..., AlignezError], tuple[object, ...]]:
        # Pickle calls an exception's constructor with `args`, here the message; our constructors take other arguments.
        return _restored, (type(self), self.args, dict(self.__dict__))


def _restored(kind: type[AlignezError], args: tuple[object, ...], facts: dict[str, object]) -> AlignezError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(facts)
    return error


class InvalidInput(AlignezError, ValueError):
    """An argument is malformed or out of its range."""

    code = "invalid_input"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class DegenerateEmbeddings(AlignezError):
    """The rows define no direction: there are none, they are zero or not finite, or two directions coincide."""

    code = "degenerate_directions"


class TooFewSamples(AlignezError):
    """The number of neighbours exceeds the number of fit queries."""

    code = "too_few_samples"

    def __init__(self, neighbors: int, samples: int) -> None:
        super().__init__(
            f"neighbors={neighbors} is more than the {samples} available fit queries; "
            f"lower neighbors to at most {samples} or add queries"
        )
        self.neighbors = neighbors
        self.samples = samples


class LayerOutOfRange(AlignezError):
    """A layer index or a number of layers exceeds the model's."""

    code = "layer_out_of_range"

    def __init__(self, layer: int, n_layers: int) -> None:
        super().__init__(f"layer {layer} does not exist: the model has {n_layers} layers (0 to {n_layers - 1})")
        self.layer = layer
        self.n_layers = n_layers


class ModelMismatch(AlignezError):
    """A profile, plan or tensor belongs to another model: its fingerprint or width differs."""

    code = "model_mismatch"

    def __init__(self, what: str, expected: object, got: object) -> None:
        super().__init__(f"{what} does not fit this model: expected {expected}, got {got}")
        self.what = what
        self.expected = expected
        self.got = got


class ContextTooLong(AlignezError):
    """Prompt tokens plus requested tokens exceed the model's context."""

    code = "context_length_exceeded"

    def __init__(self, prompt_tokens: int, max_tokens: int, context_length: int, prefix_tokens: int = 0) -> None:
        of_prefix = f" ({prefix_tokens} of them the profile's prefix)" if prefix_tokens else ""
        super().__init__(
            f"This model's maximum context length is {context_length} tokens, but {prompt_tokens} prompt tokens"
            f"{of_prefix} and {max_tokens} new tokens were requested ({prompt_tokens + max_tokens} in all)"
        )
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.context_length = context_length
        self.prefix_tokens = prefix_tokens


class RequestTooLarge(AlignezError):
    """Prompt tokens plus requested tokens exceed the engine's token limit for all requests together."""

    code = "request_too_large"

    def __init__(self, prompt_tokens: int, max_tokens: int, limit: int) -> None:
        super().__init__(
            f"{prompt_tokens} prompt tokens and {max_tokens} new tokens were requested "
            f"({prompt_tokens + max_tokens} in all), but this server holds {limit} tokens at most for all requests "
            "together; ask for fewer"
        )
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.limit = limit


class ModelNotFound(AlignezError):
    """The model directory or hub id cannot be loaded."""

    code = "model_missing"


class UnknownArchitecture(AlignezError):
    """The engine did not find the model's MLP modules."""

    code = "unknown_architecture"


class OutOfMemory(AlignezError):
    """The device has too little memory for the request or the model."""

    code = "out_of_memory"


class EngineClosed(AlignezError):
    """The engine was closed while the request was waiting or running."""

    code = "engine_closed"


class EngineCannotWalk(AlignezError):
    """The engine cannot halt between blocks, as the fit's method requires."""

    code = "engine_cannot_fit"

    def __init__(self, engine: str) -> None:
        super().__init__(
            f"{engine} cannot read the residual stream between blocks, which this method fits on; "
            "run a worker with ALIGNEZ_WORKER_ENGINE=transformers, or set fit.method to alignez, transport, prompt or "
            "urial"
        )
        self.engine = engine


class JudgeUnavailable(AlignezError):
    """The judge is unreachable or its answer is malformed."""

    code = "judge_unavailable"


class EngineOverloaded(AlignezError):
    """The engine's waiting queue is full."""

    code = "engine_overloaded"

    def __init__(self, waiting: int, limit: int) -> None:
        super().__init__(f"{waiting} requests are waiting, the limit is {limit}")
        self.waiting = waiting
        self.limit = limit


class FitCancelled(AlignezError):
    """A progress callback raises this to stop a fit between two batches."""

    code = "cancelled"


def brief(error: BaseException) -> str:
    """The error's text on one line of at most 200 characters; the name of its class if it has no text."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."
