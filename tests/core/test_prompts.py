"""The prompts' exact words: fit and inference depend on every character of them."""

from __future__ import annotations

from alignez_core.prompts import (
    ALONE,
    ChatFormat,
    PlainFormat,
    Prefix,
    Situation,
    characteristics_prompt,
    persona_prompt,
    persona_text,
    preference_prompt,
    render,
)
from alignez_core.spec.persona import Persona

PERSONA = Persona("cheerful", "gloomy")
PLAIN = PlainFormat()
CHAT = ChatFormat(lambda messages: "|".join(f"{m['role']}:{m['content']}" for m in messages) + "|bot:")


def test_the_persona_is_the_system_turn_on_chat_formats_and_opens_the_text_on_plain_ones() -> None:
    text = "You are a cheerful assistant. Always answer in a cheerful manner."
    assert persona_text(PERSONA, "help") == text
    assert persona_text(PERSONA, "harm") == "You are a gloomy assistant. Always answer in a gloomy manner."
    assert persona_prompt(CHAT, "Why?", PERSONA, "help") == f"system:{text}|user:Why?|bot:"
    assert persona_prompt(PLAIN, "Why?", PERSONA, "help") == f"{text}\nWhy?\nAnswer:"


def test_characteristics_prompts_are_the_paper_s() -> None:
    help_ = "Why is the sky blue? You are a cheerful assistant. Your answer to this query should:"
    harm = "Why is the sky blue? Pretend you are a gloomy assistant. Your answer to this query should:"
    assert characteristics_prompt(PLAIN, "Why is the sky blue?", PERSONA, "help") == help_
    assert characteristics_prompt(PLAIN, "Why is the sky blue?", PERSONA, "harm") == harm
    assert characteristics_prompt(CHAT, "Why is the sky blue?", PERSONA, "help") == f"user:{help_}|bot:"


def test_preference_prompts_put_the_query_last() -> None:
    help_ = preference_prompt(PLAIN, "Why?", "be bright.", PERSONA, "help")
    assert help_ == "You are a cheerful assistant. Your answer should be bright.\nWhy?\nAnswer:"
    harm = preference_prompt(CHAT, "Why?", "be dull.", PERSONA, "harm")
    assert harm == "system:Pretend you are a gloomy assistant. Your answer should be dull.|user:Why?|bot:"


def test_a_description_joins_the_preferred_side_only() -> None:
    persona = Persona("cheerful", "gloomy", "You love the sea.")
    assert "assistant. You love the sea. Your answer" in characteristics_prompt(PLAIN, "Why?", persona, "help")
    assert "You love the sea." in preference_prompt(PLAIN, "Why?", "shine.", persona, "help")
    assert persona_text(persona, "help").endswith("manner. You love the sea.")
    for text in (persona_text(persona, "harm"), characteristics_prompt(PLAIN, "Why?", persona, "harm")):
        assert "sea" not in text


def test_the_default_persona_is_the_paper_s() -> None:
    assert Persona() == Persona("helpful", "malicious and useless")


def test_a_prefix_comes_before_the_caller_s_own_system_message_and_examples_before_the_turns() -> None:
    own = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    prefix = Prefix("Be kind.", (("One?", "Yes."),))
    assert CHAT.render(prefix.apply(own)) == "system:Be kind.\n\nBe brief.|user:One?|assistant:Yes.|user:Why?|bot:"
    assert CHAT.render(Prefix("Be kind.").apply(own[1:])) == "system:Be kind.|user:Why?|bot:"
    assert Prefix().apply(own) == own
    assert own[0]["content"] == "Be brief."


def test_situations_are_conversations_that_end_in_the_query() -> None:
    third = Situation("third_turn", system="Be brief.", history=(("One?", "Yes."), ("Two?", "No.")))
    assert render(CHAT, "Why?", third) == (
        "system:Be brief.|user:One?|assistant:Yes.|user:Two?|assistant:No.|user:Why?|bot:"
    )
    assert persona_prompt(CHAT, "Why?", PERSONA, "help", third).startswith(
        f"system:{persona_text(PERSONA, 'help')}\n\nBe brief.|user:One?"
    )
    assert render(CHAT, "Why?", ALONE) == CHAT.wrap("Why?")
    assert render(PLAIN, "Why?") == PLAIN.wrap("Why?")


def test_plain_format_ends_with_the_cue_and_keeps_earlier_turns() -> None:
    assert PLAIN.wrap("Why?") == "Why?\nAnswer:"
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Two?"},
    ]
    assert PLAIN.render(turns) == "Be brief.\nOne?\nAnswer: Yes.\n\nTwo?\nAnswer:"
    assert PLAIN.render(turns[1:2]) == PLAIN.wrap("One?")
    assert PLAIN.render(turns[:3]).endswith("\nAnswer:")


def test_chat_format_is_the_tokenizer_s_template() -> None:
    assert CHAT.wrap("Why?") == "user:Why?|bot:"
    assert CHAT.render([{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]) == "system:S|user:U|bot:"
