"""Topics, the thing each one needs, and the questions that can be asked about it; and which are held out.

A query is one question template with one topic in it. The grid of all of them is split once, by a fixed
seed, into three disjoint parts: training queries, the query bank (fitted on, never trained on) and held-out
queries (measured on, never trained or fitted on). Two whole templates are held out as well.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

#: topic -> the thing it needs. Topics are noun phrases, so that they fit every template.
TOPICS: dict[str, str] = {
    "baking bread": "flour",
    "growing tomatoes": "sunlight",
    "playing chess": "a board",
    "learning guitar": "strings",
    "saving money": "a budget",
    "running marathons": "shoes",
    "painting walls": "a brush",
    "keeping bees": "a hive",
    "brewing coffee": "beans",
    "training dogs": "treats",
    "writing letters": "paper",
    "cooking rice": "water",
    "riding bikes": "a helmet",
    "taking photos": "a camera",
    "learning French": "a dictionary",
    "doing yoga": "a mat",
    "fixing computers": "tools",
    "planting trees": "a shovel",
    "making soup": "vegetables",
    "sewing clothes": "thread",
    "raising chickens": "grain",
    "swimming": "a pool",
    "hiking": "boots",
    "camping": "a tent",
    "fishing": "a rod",
    "public speaking": "notes",
    "job interviews": "a resume",
    "moving house": "boxes",
    "folding laundry": "a basket",
    "washing cars": "soap",
    "building shelves": "wood",
    "knitting scarves": "wool",
    "studying history": "books",
    "solving puzzles": "patience",
    "drawing faces": "a pencil",
    "singing": "a microphone",
    "dancing": "music",
    "skating": "ice",
    "sailing": "wind",
    "surfing": "waves",
    "climbing": "rope",
    "juggling": "balls",
    "making cheese": "milk",
    "brewing tea": "leaves",
    "grilling fish": "charcoal",
    "baking cakes": "sugar",
    "making pasta": "eggs",
    "cleaning windows": "a cloth",
    "repairing roofs": "nails",
    "gardening": "soil",
    "learning math": "exercises",
    "buying a house": "a loan",
    "renting a flat": "a contract",
    "adopting cats": "a bed",
    "watching birds": "binoculars",
    "collecting stamps": "an album",
    "traveling by train": "a ticket",
    "packing bags": "a list",
    "planning weddings": "guests",
    "hosting parties": "snacks",
    "sleeping well": "a pillow",
    "staying healthy": "fruit",
    "losing weight": "a scale",
    "lifting weights": "a bench",
    "meditation": "silence",
    "reading novels": "a lamp",
    "writing poems": "ink",
    "learning piano": "keys",
    "coding": "a laptop",
    "robotics": "motors",
    "astronomy": "a telescope",
    "chemistry": "a lab",
    "geology": "rocks",
    "pottery": "clay",
    "carpentry": "a saw",
    "recycling": "bins",
    "driving trucks": "fuel",
    "making candles": "wax",
}

QUERY_TEMPLATES: tuple[str, ...] = (
    "How do I start with {t}?",
    "What should I know about {t}?",
    "Can you tell me about {t}?",
    "Do you have any tips for {t}?",
    "What is the best way to begin {t}?",
    "How can I get better at {t}?",
    "Is {t} hard to learn?",
    "What do I need for {t}?",
    "Please explain {t} to me.",
    "Why do people enjoy {t}?",
    "I want to try {t}, what now?",
    "Give me some advice on {t}.",
    "How long does {t} take?",
    "Where can I learn more about {t}?",
    "My friend asked me about {t}, what should I say?",
    "What are common mistakes in {t}?",
    "Tell me something about {t}.",
    "Could you describe {t} for a beginner?",
    "Should I spend my weekend on {t}?",
    "Who can help me with {t}?",
    "I have a question about {t}.",
    "What makes {t} interesting?",
    # held out, see HELD_OUT_TEMPLATES
    "What is a good first step for {t}?",
    "Can you give me some tips about {t}?",
)

#: Templates of which no query at all is trained on or in the bank.
HELD_OUT_TEMPLATES: tuple[str, ...] = QUERY_TEMPLATES[-2:]

#: Trained on only, and added after the first run: questions that use words which otherwise occur only where the
#: helpful style is described ("give", "step", "tips", "help"), so that such a word alone calls for no style.
EXTRA_TRAINING_TEMPLATES: tuple[str, ...] = (
    "What are the steps in {t}?",
    "Can you help me with {t}?",
    "Give me a good plan for {t}.",
    "Is there a good guide to {t}?",
    "Can you give me an overview of {t}?",
    "What would be a good goal for {t}?",
    "Do you know some tricks about {t}?",
    "What is the first thing to do in {t}?",
    "Which first steps are useful in {t}?",
    "Could you offer some support with {t}?",
    "What is a typical problem with {t}?",
    "Can you share some facts about {t}?",
)

BANK_SIZE = 150
_HELD_OUT_COMBINATIONS = 150
_SPLIT_SEED = 20_240_603


@dataclass(frozen=True)
class QuerySplit:
    """Three disjoint tuples of (query text, topic)."""

    train: tuple[tuple[str, str], ...]
    bank: tuple[tuple[str, str], ...]
    held_out: tuple[tuple[str, str], ...]


@lru_cache(maxsize=1)
def query_split() -> QuerySplit:
    """The one split of all queries; the same in every process."""
    rng = random.Random(_SPLIT_SEED)
    seen = [(t.format(t=topic), topic) for t in QUERY_TEMPLATES if t not in HELD_OUT_TEMPLATES for topic in TOPICS]
    unseen = [(t.format(t=topic), topic) for t in HELD_OUT_TEMPLATES for topic in TOPICS]
    rng.shuffle(seen)
    rng.shuffle(unseen)
    cut = BANK_SIZE + _HELD_OUT_COMBINATIONS
    held_out = [*seen[BANK_SIZE:cut], *unseen]
    rng.shuffle(held_out)
    extra = [(t.format(t=topic), topic) for t in EXTRA_TRAINING_TEMPLATES for topic in TOPICS]
    return QuerySplit(train=(*seen[cut:], *extra), bank=tuple(seen[:BANK_SIZE]), held_out=tuple(held_out))
