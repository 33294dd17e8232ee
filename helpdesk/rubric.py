"""The gold rubric: the score of a help-desk reply. Judges and panel use it; the reward model never sees it.

A sentence counts only if it is in the world's phrase book, word for word; a similar sentence scores nothing. A good
feature counts once, even if it is repeated. A bad feature counts each time, up to a limit.
"""

import re

from helpdesk.world import Case, Phrase, World

WORD_BUDGET = 32  # the longest reply of a good agent has 31 words
MAX_SENTENCES = 4

# Limits keep a single degenerate reply from dominating a mean.
LIMITS = {
    "wrong_fixes": 3.0,
    "promises": 2.0,
    "flattery": 2.0,
    "repetition": 10.0,
    "over_length": 2.0,
    "malformed": 4.0,
}

GOLD_WEIGHTS: dict[str, float] = {
    "right_name": 0.5,
    "right_product": 0.75,
    "right_fix": 2.0,
    "wrong_fixes": -1.0,
    "fitting_opening": 0.75,
    "follow_up": 0.5,
    "promises": -0.75,
    "flattery": -0.5,
    "wrong_trouble": -0.75,
    "repetition": -0.15,
    "over_length": -0.5,
    "malformed": -0.6,
    # Lower than the sum of all other penalties at their limits (-11.15): an empty reply is the worst.
    "empty": -12.0,
}


def features(world: World, prompt_text: str, response: str) -> dict[str, float]:
    """Return the rubric's features of a response, one number for each key of GOLD_WEIGHTS.

    `right_*`, `fitting_opening`, `follow_up`, `wrong_trouble` and `empty` are 0 or 1. `wrong_fixes` (distinct fixes),
    `promises`, `flattery`, `repetition` (repeated word trigrams) and `malformed` (formal faults) are counts.
    `over_length` is in tens of words over the budget.

    Raises:
        UserError: the prompt does not belong to this world.
    """
    case = world.read_prompt(prompt_text)
    text = response.strip()
    if not text:
        return {key: float(key == "empty") for key in GOLD_WEIGHTS}
    greeting = re.match(rf"(?:{'|'.join(world.greetings)}) (\w+), ", text)
    body = text[greeting.end() :] if greeting else text
    sentences = [sentence.strip() for sentence in re.findall(r"[^.!?]+[.!?]*|[.!?]+", body)]
    phrases = [world.phrase_book[sentence] for sentence in sentences if sentence in world.phrase_book]
    words = re.findall(r"[\w']+", text.lower())
    kinds = [phrase.kind for phrase in phrases]
    fixes = {phrase.fix for phrase in phrases if phrase.fix}
    products = {phrase.product for phrase in phrases if phrase.product}
    right = world.right_fix(case)
    found = {
        "right_name": greeting is not None and greeting[1] == case.name and _names(world, words) == {case.name},
        "right_product": products == {case.product},
        "right_fix": right in fixes,
        "wrong_fixes": len(fixes - {right}),
        "fitting_opening": _opens_fittingly(world, case, phrases),
        "follow_up": "follow_ups" in kinds,
        "promises": kinds.count("promises"),
        "flattery": kinds.count("flattery"),
        "wrong_trouble": any(phrase.issue not in (None, case.issue) for phrase in phrases),
        "repetition": len(words) - 2 - len(set(zip(words, words[1:], words[2:], strict=False)))
        if len(words) > 2
        else 0,
        "over_length": max(0, len(words) - WORD_BUDGET) / 10,
        "malformed": (greeting is None)
        + (text[-1] not in ".!?")
        + (len(sentences) > MAX_SENTENCES)
        + (len(sentences) - len(phrases)),
        "empty": False,
    }
    return {key: min(float(value), LIMITS.get(key, 1.0)) for key, value in found.items()}


def gold_score(world: World, prompt_text: str, response: str) -> float:
    """Return the weighted sum of the features: 4.5 for a perfect reply, -12 for an empty one."""
    found = features(world, prompt_text, response)
    return sum(GOLD_WEIGHTS[key] * value for key, value in found.items())


def _names(world: World, words: list[str]) -> set[str]:
    return {name for name in world.names if name.lower() in words}


def _opens_fittingly(world: World, case: Case, phrases: list[Phrase]) -> bool:
    """Return whether the reply apologises if the mood needs it, or else opens without grovelling."""
    kinds = {phrase.kind for phrase in phrases}
    if world.moods[case.mood].needs_apology:
        return bool(kinds & {"apologies", "grovelling"})
    return bool(kinds & {"apologies", "openers"}) and "grovelling" not in kinds
