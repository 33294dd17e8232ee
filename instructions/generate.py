"""Generate prompts with constraints from a seed.

A request is a (topic, frame) combination. A fifth of them is held out for development and test prompts. The types in
TRAINED occur in training, development and test prompts; every other type only in the test prompts that are held out.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from instructions.constraint import Constraint, Topic
from instructions.table import constraint_types, values_of
from instructions.topics import SLOT, Topics
from rlhf_core.common.errors import UserError
from rlhf_core.common.seeding import stream_seed

HELD_OUT_SHARE = 0.2
# Ten types, with how often each is drawn. SmolLM2-135M-Instruct meets each of them sometimes, but not nearly always: a
# policy cannot learn from rewards what it never does, nor what it always does. Rarely met types are drawn more often.
# Responses in capital letters, in quotation marks or with a given ending, for example, do not occur by chance.
TRAINED: Mapping[str, float] = {
    "length_constraints:number_words": 0.7,
    "length_constraints:number_sentences": 0.8,
    "keywords:existence": 1.0,
    "keywords:frequency": 1.0,
    "keywords:forbidden_words": 0.7,
    "detectable_format:number_bullet_lists": 1.3,
    "detectable_format:title": 0.7,
    "detectable_content:number_placeholders": 1.0,
    "own:numbered_list": 0.7,
    "punctuation:no_comma": 1.3,
}
COUNTS = {1: 0.25, 2: 0.45, 3: 0.3}  # how often a prompt has so many constraints, before those too long are redrawn
LONGEST = 122  # characters of request and constraints: about 48 tokens of SmolLM2 with its chat template
TRIES = 1000

Row = dict[str, Any]


@dataclass(frozen=True)
class Instructions:
    """The rows of one seed. The test rows alternate between trained and held-out types."""

    train: list[Row]
    development: list[Row]
    test: list[Row]


def held_out_types() -> dict[str, float]:
    """Every type that is not trained, with equal weights."""
    return {id: 1.0 for id in constraint_types() if id not in TRAINED}


def generate(topics: Topics, seed: int, *, train: int, development: int, test: int) -> Instructions:
    """Generate distinct prompts; equal arguments give equal rows. `test` is the number for each kind of types.

    Raises:
        UserError: the topics do not allow so many distinct prompts.
    """
    requests = [(topic, frame) for topic in topics.topics for frame in topics.frames]
    random.Random(stream_seed(seed, "instructions", "requests")).shuffle(requests)
    held = int(len(requests) * HELD_OUT_SHARE)
    if not held:
        raise UserError("The file of topics has too few topics and frames. Add some.")
    seen: set[str] = set()

    def rows(name: str, count: int, kinds: Mapping[str, float], among: Sequence[tuple[Topic, str]]) -> list[Row]:
        rng = random.Random(stream_seed(seed, "instructions", name))
        group = "trained" if kinds is TRAINED else "held_out_types"
        return [_row(topics, rng, kinds, among, seen) | {"group": group} for _ in range(count)]

    trained = rows("test", test, TRAINED, requests[:held])
    others = rows("held-out types", test, held_out_types(), requests[:held])
    return Instructions(
        rows("train", train, TRAINED, requests[held:]),
        rows("development", development, TRAINED, requests[:held]),
        [row for pair in zip(trained, others, strict=True) for row in pair],
    )


def _row(
    topics: Topics,
    rng: random.Random,
    kinds: Mapping[str, float],
    requests: Sequence[tuple[Topic, str]],
    seen: set[str],
) -> Row:
    """Draw a prompt that was not drawn before."""
    for _ in range(TRIES):
        topic, frame = rng.choice(requests)
        request = frame.replace(SLOT, topic.name)
        constraints = draw_constraints(rng, topic, kinds)
        text = " ".join([request, *(constraint.phrase() for constraint in constraints)])
        if text in seen or len(text) > LONGEST:
            continue
        seen.add(text)
        system = [{"role": "system", "content": topics.system}] if topics.system else []
        return {
            "prompt": [*system, {"role": "user", "content": text}],
            "instruction_id_list": [constraint.id for constraint in constraints],
            "kwargs": [values_of(constraint) for constraint in constraints],
            "about": [topic.name, *topic.related],
        }
    raise UserError("The file of topics allows too few distinct prompts. Add topics or frames, or ask for fewer.")


def draw_constraints(rng: random.Random, topic: Topic, kinds: Mapping[str, float]) -> list[Constraint]:
    """Draw one to three constraints that do not conflict: no shared aspect, no word asked for and forbidden."""
    count = rng.choices(list(COUNTS), list(COUNTS.values()))[0]
    found: list[Constraint] = []
    while len(found) < count:
        taken = frozenset().union(*(constraint.aspects for constraint in found))
        free = {id: weight for id, weight in kinds.items() if not constraint_types()[id].aspects & taken}
        if not free:
            break
        id = rng.choices(list(free), list(free.values()))[0]
        found.append(constraint_types()[id].draw(rng, topic))
    return found if _is_possible(found, topic) else draw_constraints(rng, topic, kinds)


def _is_possible(constraints: Sequence[Constraint], topic: Topic) -> bool:
    """Whether every constraint allows the topic's name and the texts that the other constraints ask for."""
    for constraint in constraints:
        others = [vars(other).values() for other in constraints if other is not constraint]
        texts = [topic.name, *(str(part) for values in others for value in values for part in _parts(value))]
        if not all(constraint.allows(text) for text in texts):
            return False
    return True


def _parts(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
