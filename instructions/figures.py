"""The four accuracies of IFEval, with the names that lm-eval gives them, each with and without the guard."""

from collections.abc import Sequence

from instructions.checker import Task

# One figure: for each prompt how much is met, and of how much.
Counts = tuple[list[float], list[float]]


def accuracies(tasks: Sequence[Task], texts: Sequence[str], fluent: Sequence[bool]) -> dict[str, Counts]:
    """Return figures by name: GROUP/prompt_level_strict_acc and so on, and GROUP/guarded_... with the guard.

    A guarded figure counts the constraints of a response that is no answer, or is not fluent, as not met. Groups come
    from the tasks, in the order of their first prompts; GROUP/answers is the share of responses that pass the guard.
    """
    rows = list(zip(tasks, texts, fluent, strict=True))
    passed = [task.is_answer(text) and is_fluent for task, text, is_fluent in rows]
    strict, loose = [task.strict(text) for task, text, _ in rows], [task.loose(text) for task, text, _ in rows]
    found: dict[str, Counts] = {}
    for group in dict.fromkeys(task.group for task in tasks):
        inside = [float(task.group == group) for task in tasks]
        found[f"{group}/answers"] = [part * good for part, good in zip(inside, passed, strict=True)], inside
        for prefix, counted in (("", [True] * len(rows)), ("guarded_", passed)):
            for name, met in (("strict", strict), ("loose", loose)):
                kept = [[value and good for value in values] for values, good in zip(met, counted, strict=True)]
                whole = [part * all(values) for part, values in zip(inside, kept, strict=True)]
                parts = [part * sum(values) for part, values in zip(inside, kept, strict=True)]
                asked = [part * len(values) for part, values in zip(inside, kept, strict=True)]
                found[f"{group}/{prefix}prompt_level_{name}_acc"] = whole, inside
                found[f"{group}/{prefix}inst_level_{name}_acc"] = parts, asked
    return found
