"""What the soak asks for."""

from __future__ import annotations

import pytest

from bench.soak.world import SoakProfile, World, make_questions


@pytest.mark.parametrize("chat_only", [True, False])
@pytest.mark.parametrize("lasting", [True, False])
def test_text_completions_are_asked_of_profiles_without_a_prefix_alone(chat_only: bool, lasting: bool) -> None:
    world = World(["key"], make_questions(4))
    profile = SoakProfile(0, "cheerful", "1", {1: "aa"}, user="ada", lasting=lasting, chat_only=chat_only)
    world.profiles.append(profile)
    asked = [one for one in (world.next_request(0) for _ in range(200)) if one.profile is profile]
    assert any(one.path.endswith("/chat/completions") for one in asked)
    assert any(one.question.path == "/completions" for one in asked) is not chat_only
