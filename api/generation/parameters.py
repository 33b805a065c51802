"""Request bodies in which every field is known: honoured, without effect on the answer, or refused by name.

An answer that ignored a setting in silence would be wrong, so a misspelt name is an error, and so is a setting of
OpenAI's or vLLM's that no engine here honours, unless its value says "off".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from api.http.fields import field_error, refuse_boolean, unknown_field

#: Values of more characters are not shown in messages.
_SHOWN = 60

#: Names of fields, and of each the values that mean "off".
OffValues = Mapping[str, tuple[object, ...]]

#: Settings of OpenAI's and vLLM's completions that no engine here honours.
UNSUPPORTED: OffValues = {
    "add_generation_prompt": (None, True),
    "add_special_tokens": (None,),
    "allowed_token_ids": (None,),
    "audio": (None,),
    "bad_words": (None, []),
    "best_of": (None, 1),
    "cache_salt": (None,),
    "chat_template": (None,),
    "chat_template_kwargs": (None, {}),
    "continue_final_message": (None, False),
    "documents": (None, []),
    "echo": (None, False),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "guided_choice": (None,),
    "guided_decoding_backend": (None,),
    "guided_grammar": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_whitespace_pattern": (None,),
    "include_stop_str_in_output": (None, False),
    "length_penalty": (None, 1),
    "logit_bias": (None, {}),
    "logits_processors": (None, []),
    "min_p": (None, 0),
    "min_tokens": (None, 0),
    "modalities": (None, ["text"]),
    "mm_processor_kwargs": (None, {}),
    "prediction": (None,),
    "presence_penalty": (None, 0),
    "priority": (None, 0),
    "prompt_logprobs": (None,),
    "reasoning_effort": (None,),
    "repetition_penalty": (None, 1),
    "response_format": (None, {"type": "text"}),
    "return_token_ids": (None, False),
    "return_tokens_as_token_ids": (None, False),
    "skip_special_tokens": (None, True),
    "spaces_between_special_tokens": (None, True),
    "structured_outputs": (None,),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "truncate_prompt_tokens": (None,),
    "use_beam_search": (None, False),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}

#: Fields of OpenAI's that describe a request, or say how to account for it, and leave the answer as it is.
DESCRIPTIVE = frozenset(
    {
        "metadata",
        "parallel_tool_calls",  # there are no tools
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
    }
)


class KnownFields(BaseModel):
    """A body, or a part of one, that refuses fields which it does not know or cannot honour.

    A field that may be left out may also be null.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    #: Known fields that are not honoured.
    unsupported: ClassVar[OffValues] = {}
    #: Known fields without effect on the answer.
    descriptive: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_honoured(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        honoured = {}
        for name, value in values.items():
            known = cls.model_fields.get(name)
            if known is not None:
                refuse_boolean(name, value, known)
                if value is not None or known.is_required():
                    honoured[name] = value
            elif name in cls.unsupported:
                if not cls.is_off(name, values):
                    raise field_error(name, _unsupported(value, cls.unsupported[name]), "unsupported_parameter")
            elif name not in cls.descriptive:
                raise unknown_field(name, cls.model_fields)
        return honoured

    @classmethod
    def is_off(cls, name: str, values: Mapping[str, Any]) -> bool:
        """True if an unsupported field has a value that asks for nothing.

        Args:
            values: the whole object, for fields that depend on each other.
        """
        value = values[name]
        # True equals 1 in Python, and 1 is not a value of a switch.
        return any(value == off and isinstance(value, bool) == isinstance(off, bool) for off in cls.unsupported[name])


def _unsupported(value: object, off: tuple[object, ...]) -> str:
    neutral = "" if off[-1] is None else f", or send {off[-1]!r}"
    got = f" (got {value!r})" if isinstance(value, bool | int | float | str) and len(str(value)) <= _SHOWN else ""
    return f"is not supported here{got}; leave it out{neutral}"
