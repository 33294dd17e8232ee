"""Generate the prompts and replies of the help desk from a seed.

A case is a (name, product, issue) combination with a mood. A fifth of the combinations is held out for development and
test prompts. Threads, demonstrations and training prompts use only the others.
"""

import random
from dataclasses import dataclass
from typing import Any

from helpdesk.world import Case, World
from rlhf_core.common.errors import UserError
from rlhf_core.common.seeding import stream_seed

HELD_OUT_SHARE = 0.2

Row = dict[str, Any]  # {"prompt": [{"role": "user", "content": text}], "response": text}


@dataclass(frozen=True)
class Habits:
    """How often an agent names the right fix, uses a fitting opening, follows up, flatters and promises too much."""

    right_fix: float
    fitting_opening: float
    follow_up: float
    flattery: float
    promise: float


GOOD_AGENT = Habits(right_fix=1.0, fitting_opening=1.0, follow_up=1.0, flattery=0.0, promise=0.0)
# The demonstrations are mixed on purpose: preferences then teach which habits are good.
DEMONSTRATOR = Habits(right_fix=0.5, fitting_opening=0.7, follow_up=0.7, flattery=0.25, promise=0.25)
# Old threads are worse than demonstrations in every habit, but the right fix is still the most frequent one.
THREAD_AGENT = Habits(right_fix=0.4, fitting_opening=0.5, follow_up=0.5, flattery=0.3, promise=0.3)


@dataclass(frozen=True)
class HelpDesk:
    """All rows for one seed. Development and test prompts have a good agent's reply as reference."""

    threads: list[Row]
    demonstrations: list[Row]
    prompts_train: list[Row]
    prompts_development: list[Row]
    prompts_test: list[Row]


def write_reply(world: World, case: Case, habits: Habits, rng: random.Random) -> str:
    """Return a reply to the case, of at most four sentences, by an agent with these habits."""
    fits = rng.random() < habits.fitting_opening
    if world.moods[case.mood].needs_apology:
        openings = world.apologies if fits else world.openers
    else:
        openings = world.openers if fits else world.grovelling
    fix = world.right_fix(case)
    if rng.random() >= habits.right_fix:
        fix = rng.choice([other for other in world.fixes if other != fix])
    sentences = [world.about_trouble(rng.choice(openings), case.product, case.issue)]
    excess = rng.random()  # one draw for both, so that an agent who flatters does not also promise
    if excess < habits.flattery:
        sentences.append(rng.choice(world.flattery))
    sentences.append(rng.choice(world.fixes[fix]))
    if habits.flattery <= excess < habits.flattery + habits.promise:
        sentences.append(rng.choice(world.promises))
    if rng.random() < habits.follow_up:
        sentences.append(rng.choice(world.follow_ups))
    return f"{rng.choice(world.greetings)} {case.name}, {' '.join(sentences)}"


def split_cases(world: World, seed: int) -> dict[str, list[Case]]:
    """Return all cases split into `train`, `development` and `test`, disjoint in (name, product, issue)."""
    combinations = [(n, p, i) for n in world.names for p in world.families_of for i in world.issues]
    rng = random.Random(stream_seed(seed, "helpdesk", "split"))
    rng.shuffle(combinations)
    held_out = round(HELD_OUT_SHARE * len(combinations))
    parts = {
        "development": combinations[: held_out // 2],
        "test": combinations[held_out // 2 : held_out],
        "train": combinations[held_out:],
    }
    moods = [(mood, line) for mood in world.moods for line in world.moods[mood].lines]
    return {part: [Case(*c, *mood) for c in members for mood in moods] for part, members in parts.items()}


def generate(
    world: World,
    seed: int,
    *,
    threads: int = 6000,
    demonstrations: int = 2000,
    prompts_train: int = 2000,
    prompts_development: int = 200,
    prompts_test: int = 300,
) -> HelpDesk:
    """Return the help desk's rows. The same arguments give the same rows; all prompts of a list differ.

    Each list has its own random stream, so that changing one count does not change the other lists, and a longer list
    begins with the shorter one.

    Raises:
        UserError: a count is negative or larger than the number of available prompts.
    """
    cases = split_cases(world, seed)

    def rows(key: str, part: str, count: int, habits: Habits | None) -> list[Row]:
        if not 0 <= count <= len(cases[part]):
            most = len(cases[part])
            raise UserError(f"{key} is {count}, but only {most} such prompts exist. Choose a number from 0 to {most}.")
        rng = random.Random(stream_seed(seed, "helpdesk", key))
        order = rng.sample(cases[part], len(cases[part]))
        return [_row(world, case, habits, rng) for case in order[:count]]

    return HelpDesk(
        threads=rows("threads", "train", threads, THREAD_AGENT),
        demonstrations=rows("demonstrations", "train", demonstrations, DEMONSTRATOR),
        prompts_train=rows("prompts_train", "train", prompts_train, None),
        prompts_development=rows("prompts_development", "development", prompts_development, GOOD_AGENT),
        prompts_test=rows("prompts_test", "test", prompts_test, GOOD_AGENT),
    )


def _row(world: World, case: Case, habits: Habits | None, rng: random.Random) -> Row:
    row: Row = {"prompt": [{"role": "user", "content": world.prompt(case)}]}
    if habits:
        row["response"] = write_reply(world, case, habits, rng)
    return row
