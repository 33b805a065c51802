"""Types shared by request bodies and paths. Limits are imported from `profiles`, which defines each of them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from typing import Annotated, Any, TypeVar, get_args

from fastapi import Path, Query
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from alignez_core.spec.limits import LIMITS
from profiles.errors import InvalidSpec
from profiles.paging import MAX_LIMIT
from profiles.spec import (
    ANSWER_LIMIT,
    DESCRIPTION_LIMIT,
    END_USER_PATTERN,
    NAME_LIMIT,
    PHRASE_LIMIT,
    TEXT_LIMIT,
    USER_LIMIT,
    check_end_user,
    check_time,
)
from profiles.text import unstorable

T = TypeVar("T")

MAX_PAGE = MAX_LIMIT
#: Maximum length of a name or id in a path.
MAX_ID = 200
#: Largest value of a Postgres `integer`.
MAX_INTEGER = 2**31 - 1
MAX_BIGINT = 2**63 - 1
#: Names in messages are cut to this many characters.
_SHOWN = 60
#: Minimum similarity of a misspelt and a known name, from 0 to 1, for a hint.
_ALIKE = 0.7

NAME_PATTERN = rf"^[A-Za-z0-9][A-Za-z0-9._-]{{0,{NAME_LIMIT - 1}}}$"
ALIAS_PATTERN = NAME_PATTERN


class Body(BaseModel):
    """Base of our request bodies. An unknown field is an error, because it may be a misspelt one."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_wrong_fields(cls, values: Any) -> Any:
        refuse_unknown(values, cls.model_fields)
        if isinstance(values, dict):
            for name, value in values.items():
                refuse_boolean(name, value, cls.model_fields[name])
        return values


class Row(BaseModel):
    """Base of our responses that show columns of a table: `model_validate` takes the row."""

    model_config = ConfigDict(from_attributes=True)


def within(name: str) -> Any:
    """The range that the core has for a number, as a constraint of pydantic's."""
    low, high = LIMITS[name]
    return Field(ge=low, le=high) if name in _FLOATS else Field(ge=int(low), le=int(high))


_FLOATS = ("contrast", "ridge", "strength", "temperature", "prompt_margin")


def refuse_unknown(values: object, known: Collection[str]) -> None:
    """Checks the names of an object.

    pydantic would make an error of each unknown name, which for a body of them takes seconds and hundreds of MB.

    Raises: PydanticCustomError: for the first unknown name.
    """
    if isinstance(values, dict):
        for name in values:
            if name not in known:
                raise unknown_field(name, known)


def refuse_boolean(name: str, value: object, field: FieldInfo) -> None:
    """Checks that true and false stand for themselves: in Python they would count as 1 and 0.

    Raises: PydanticCustomError: the value is a boolean, and the field takes none.
    """
    if isinstance(value, bool) and bool not in (field.annotation, *get_args(field.annotation)):
        raise field_error(name, "must not be true or false")


def unknown_field(name: str, known: Collection[str]) -> PydanticCustomError:
    """The error for a field that does not exist, with the nearest name that does."""
    close = difflib.get_close_matches(name[:_SHOWN], list(known), n=1, cutoff=_ALIKE)
    hint = f"did you mean {close[0]!r}?" if close else "leave it out"
    shown = name[:_SHOWN].encode("ascii", "backslashreplace").decode()  # JSON may hold lone surrogates
    return field_error(shown, f"there is no such parameter; {hint}", "unknown_parameter")


def field_error(field: str, message: str, code: str = "invalid_request") -> PydanticCustomError:
    """The error of a rule that concerns several fields, for a model's validator to raise; names the field to change."""
    return PydanticCustomError("field_error", "{message}", {"field": field, "message": message, "code": code})


def _checked(check: Callable[[str, T], T]) -> AfterValidator:
    """Wraps a check of `profiles.spec` as a validator; pydantic adds the field's name."""

    def validate(value: T) -> T:
        try:
            return check("", value)
        except InvalidSpec as error:
            raise ValueError(error.message) from error

    return AfterValidator(validate)


def _storable(value: str) -> str:
    problem = unstorable(value)
    if problem is not None:
        raise ValueError(problem)
    return value


def _stripped(value: object) -> object:
    return value.strip() if isinstance(value, str) else value


#: Text that Postgres and tokenizers accept.
Text = Annotated[str, AfterValidator(_storable)]
_Stripped = BeforeValidator(_stripped)
ShortText = Annotated[Text, Field(min_length=1, max_length=PHRASE_LIMIT), _Stripped]
Phrase = ShortText
Description = Annotated[Text, Field(max_length=DESCRIPTION_LIMIT), _Stripped]
QueryText = Annotated[Text, Field(min_length=1, max_length=TEXT_LIMIT), _Stripped]
AnswerText = Annotated[Text, Field(min_length=1, max_length=ANSWER_LIMIT), _Stripped]
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
AliasName = Annotated[str, StringConstraints(pattern=ALIAS_PATTERN)]
VersionNumber = Annotated[int, Field(ge=1, le=MAX_INTEGER)]
#: A time, converted to UTC.
Moment = Annotated[AwareDatetime, _checked(check_time)]
#: An end user's id, in bodies and paths.
EndUser = Annotated[
    str,
    Field(min_length=1, max_length=USER_LIMIT, json_schema_extra={"pattern": END_USER_PATTERN}),
    _checked(lambda _, user: check_end_user(user)),
]
#: OpenAI's clients may send an empty string instead of null.
OptionalEndUser = Annotated[EndUser | None, BeforeValidator(lambda user: None if user == "" else user)]

#: A profile's id or name in a path. A value that can be neither is answered with 404.
ProfilePath = Annotated[Text, Path(min_length=1, max_length=MAX_ID, description="id or name")]
#: The same in a body.
ProfileRef = Annotated[Text, Field(min_length=1, max_length=MAX_ID, description="id or name")]
IdPath = Annotated[Text, Path(min_length=1, max_length=MAX_ID)]
NumberPath = Annotated[int, Path(ge=1, le=MAX_INTEGER, description="the version's number")]
AliasPath = Annotated[str, Path(pattern=ALIAS_PATTERN)]
EndUserPath = Annotated[
    EndUser, Path(description="your own id of an end user, 1 to 200 characters without '/' and control characters")
]
Cursor = Annotated[Text | None, Query(max_length=MAX_ID, description="`next` of the page before this one")]
PageLimit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="rows per page")]
