"""Types that several request bodies share. The limits are those of `profiles`, where each is written once."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from profiles.paging import MAX_LIMIT
from profiles.spec import ANSWER_LIMIT, DESCRIPTION_LIMIT, NAME_LIMIT, PHRASE_LIMIT, TEXT_LIMIT, USER_LIMIT

MAX_PAGE = MAX_LIMIT
#: Of a name or id in a path: beyond it nothing is looked up.
MAX_ID = 200
#: Largest value of a Postgres `integer`.
MAX_INTEGER = 2**31 - 1
MAX_BIGINT = 2**63 - 1

NAME_PATTERN = rf"^[A-Za-z0-9][A-Za-z0-9._-]{{0,{NAME_LIMIT - 1}}}$"
ALIAS_PATTERN = NAME_PATTERN
#: No slash (it would split the path), no control characters.
END_USER_PATTERN = rf"^[^\x00-\x1f\x7f/]{{1,{USER_LIMIT}}}$"


class Body(BaseModel):
    """A request body of ours: unknown fields are errors, because a misspelt setting must not pass in silence."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def _without_nul(value: str) -> str:
    if "\x00" in value:
        raise ValueError("must not contain NUL bytes")
    return value


def _stripped(value: object) -> object:
    return value.strip() if isinstance(value, str) else value


#: Text that Postgres and a tokenizer can take.
Text = Annotated[str, AfterValidator(_without_nul)]
Phrase = Annotated[
    str, BeforeValidator(_stripped), AfterValidator(_without_nul), Field(min_length=1, max_length=PHRASE_LIMIT)
]
Description = Annotated[
    str, BeforeValidator(_stripped), AfterValidator(_without_nul), Field(max_length=DESCRIPTION_LIMIT)
]
QueryText = Annotated[
    str, BeforeValidator(_stripped), AfterValidator(_without_nul), Field(min_length=1, max_length=TEXT_LIMIT)
]
AnswerText = Annotated[
    str, BeforeValidator(_stripped), AfterValidator(_without_nul), Field(min_length=1, max_length=ANSWER_LIMIT)
]
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
AliasName = Annotated[str, StringConstraints(pattern=ALIAS_PATTERN)]
EndUser = Annotated[str, StringConstraints(pattern=END_USER_PATTERN)]
VersionNumber = Annotated[int, Field(ge=1, le=MAX_INTEGER)]
ShortText = Annotated[
    str, BeforeValidator(_stripped), AfterValidator(_without_nul), Field(min_length=1, max_length=PHRASE_LIMIT)
]

#: A profile's id or name in a path. Anything that can be neither is simply not found.
ProfilePath = Annotated[str, Path(min_length=1, max_length=MAX_ID, pattern=r"^[^\x00]+$", description="id or name")]
IdPath = Annotated[str, Path(min_length=1, max_length=MAX_ID, pattern=r"^[^\x00]+$")]
NumberPath = Annotated[int, Path(ge=1, le=MAX_INTEGER, description="the version's number")]
AliasPath = Annotated[str, Path(pattern=ALIAS_PATTERN)]
EndUserPath = Annotated[str, Path(pattern=END_USER_PATTERN, description="your own id of an end user")]
Cursor = Annotated[
    str | None, Query(max_length=MAX_ID, pattern=r"^[^\x00]*$", description="`next` of the page before this one")
]
PageLimit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="rows per page")]
