"""The prompts' exact words: fit and inference depend on every character of them."""

from __future__ import annotations

from alignez_core.prompts import ChatFormat, Persona, PlainFormat, characteristics_prompt, preference_content

PERSONA = Persona("cheerful", "gloomy")


def test_characteristics_prompts_are_the_paper_s() -> None:
    assert characteristics_prompt("Why is the sky blue?", PERSONA, "help") == (
        "Why is the sky blue? You are a cheerful assistant. Your answer to this query should:"
    )
    assert characteristics_prompt("Why is the sky blue?", PERSONA, "harm") == (
        "Why is the sky blue? Pretend you are a gloomy assistant. Your answer to this query should:"
    )


def test_preference_content_puts_the_query_last() -> None:
    assert preference_content("Why?", "be bright.", PERSONA, "help") == (
        "You are a cheerful assistant. Your answer should be bright.\nWhy?"
    )
    assert preference_content("Why?", "be dull.", PERSONA, "harm").startswith("Pretend you are a gloomy assistant.")


def test_a_description_joins_the_preferred_side_only() -> None:
    persona = Persona("cheerful", "gloomy", "You love the sea.")
    assert "assistant. You love the sea. Your answer" in characteristics_prompt("Why?", persona, "help")
    assert "You love the sea." in preference_content("Why?", "shine.", persona, "help")
    assert "sea" not in characteristics_prompt("Why?", persona, "harm")


def test_the_default_persona_is_the_paper_s() -> None:
    assert Persona() == Persona("helpful", "malicious and useless")


def test_plain_format_ends_with_the_cue_and_keeps_earlier_turns() -> None:
    plain = PlainFormat()
    assert plain.wrap("Why?") == "Why?\nAnswer:"
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Two?"},
    ]
    assert plain.render(turns) == "Be brief.\nOne?\nAnswer: Yes.\n\nTwo?\nAnswer:"
    assert plain.render(turns[1:2]) == plain.wrap("One?")
    assert plain.render(turns[:3]).endswith("\nAnswer:")


def test_chat_format_is_the_tokenizer_s_template() -> None:
    chat = ChatFormat(lambda messages: "|".join(f"{m['role']}:{m['content']}" for m in messages) + "|bot:")
    assert chat.wrap("Why?") == "user:Why?|bot:"
    assert chat.render([{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]) == "system:S|user:U|bot:"
