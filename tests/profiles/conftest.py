"""A tenant with a profile of several versions."""

from __future__ import annotations

import pytest

from profiles.models import Profile
from profiles.service import Caller
from tests.factories import Factory


@pytest.fixture
def caller(make: Factory) -> Caller:
    return make.caller()


@pytest.fixture
def profile(make: Factory, caller: Caller) -> Profile:
    """With versions 1, 2 and 3 ready; 1 is the default."""
    first = make.ready(caller)
    for _ in range(2):
        make.ready(caller, profile=first.profile.id)
    return first.profile
