"""Following instructions: requests with constraints that code checks, generated from the seed or read from a file."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from instructions.checker import Task, fluency_limit
from instructions.figures import accuracies
from instructions.prompt_files import read_prompts
from instructions.topics import Topics
from rlhf_core.common.errors import UserError
from tasks.data.clean import Cleaned, split_by_prompt
from tasks.data.formats import RawRow
from tasks.files.jsonl import rows_if_any
from tasks.files.paths import PREPARED, rows
from tasks.params.schema import Params
from tasks.params.sections import PrepareParams
from tasks.problems.material import Files, Generated, Material
from tasks.problems.problem import Counts, Messages, Outcome, Outcomes, require_path, text_judge

if TYPE_CHECKING:
    from rlhf_core.scoring.judges import Judge

SPLITS = ("train", "development", "test")
PROMPTS_SUFFIX = ".jsonl"  # of a file in IFEval's format; any other file holds topics


@dataclass(frozen=True)
class Checker:
    """The constraints of every prepared prompt, by the text of its last message."""

    tasks: Mapping[str, Task]

    def task(self, prompt: Messages) -> Task:
        """The task of a prompt.

        Raises:
            UserError: the prompt is not in the prepared data.
        """
        text = prompt[-1]["content"]
        if text not in self.tasks:
            raise UserError(f"{PREPARED} has no constraints for the prompt {text[:60]!r}. Run: dvc repro prepare")
        return self.tasks[text]

    def score(self, prompt: Messages, response: str) -> float:
        """The share of constraints met; 0 for a response that is not an answer."""
        return self.task(prompt).score(response)


def prepared_checker() -> Checker:
    """The checker of the data that stage prepare made."""
    found = {}
    for split in SPLITS:
        path = rows(PREPARED, "prompts", split)
        for number, row in enumerate(rows_if_any(path), 1):
            found[row["prompt"][-1]["content"]] = Task.of_row(row, f"{path}, line {number}")
    return Checker(found)


class Instructions(Generated):
    """Requests with one to three constraints each. The checker is gold: it labels pairs and judges policies."""

    kinds = ("instructions",)
    title = "the instructions"
    folder = "instructions"
    has_text = False
    has_feedback = True
    has_judge = True
    has_panel = True
    has_constraints = True
    has_outcomes = True

    def gold(self, prepare: PrepareParams) -> Checker:
        """The checker."""
        return prepared_checker()

    def judge(self, prepare: PrepareParams) -> "Judge":
        """A judge by the checker's score."""
        checker = prepared_checker()
        return text_judge("constraint checker", lambda prompt, text: checker.score(prompt.messages, text))

    def constraint_score(self, guard: bool) -> Callable[[Messages, str], float]:
        """The share of constraints met; with `guard`, 0 if the response is not an answer."""
        checker = prepared_checker()
        return checker.score if guard else lambda prompt, text: checker.task(prompt).fraction(text)

    def annotators(self, params: Params, rng: Random) -> Sequence[Any]:
        """The checker, who makes no errors."""
        from rlhf_core.feedback.exact_annotator import ExactAnnotator

        return [ExactAnnotator("checker", prepared_checker().score)]

    def panel_title(self, params: Params) -> str:
        """The checker."""
        return "the constraint checker"

    def setting_for(self, form: str, file: str) -> str:
        """The checker can be asked for any form of feedback."""
        return f"collect.form to {form}"

    def outcomes(
        self, prompts: Sequence[Messages], texts: Sequence[str], perplexities: Sequence[float], typical: Sequence[float]
    ) -> Outcomes:
        """The accuracies of IFEval, with and without the guard."""
        checker, limit = prepared_checker(), fluency_limit(typical)
        fluent = [perplexity <= limit for perplexity in perplexities]
        figures = accuracies([checker.task(prompt) for prompt in prompts], texts, fluent)
        return {name: Outcome(*counts) for name, counts in figures.items()}

    def count_rows(self, params: Params, given: int) -> Counts:
        """Count the prompts, and one preference for each pair of responses, of which ties are dropped."""
        sample = params.sample
        prompts = params.prepare.prompts
        asked = min(sample.prompts, prompts)
        pairs = asked * comb(sample.responses * len(sample.checkpoints), 2)
        return Counts(0, 0, prompts, pairs, 0, asked + sample.development_prompts)

    def check_source(self, prepare: PrepareParams, root: Path) -> None:
        """Check that the path is a file."""
        require_path(prepare, root)
        if not (root / prepare.path).is_file():
            raise UserError(f"prepare.path {prepare.path} is not a file. Name a file of topics or prompts.")

    def look(self, prepare: PrepareParams, root: Path) -> str:
        """Read the topics or the prompts, and describe them."""
        path = root / prepare.path
        if path.suffix == PROMPTS_SUFFIX:
            return f"{prepare.path}, {len(read_prompts(path))} prompts with constraints"
        Topics.load(path)
        return f"{prepare.path}, {self.title}"

    def generate(self, params: Params) -> Material:
        """Generate the prompts from the seed, or read them from a file and split them."""
        from instructions.generate import generate  # imports torch

        section, path = params.prepare, Path(params.prepare.path)
        if path.suffix == PROMPTS_SUFFIX:
            given = read_prompts(path)
            return _material(self, path.name, {"given": given}, params, lambda kept: _split(kept["given"], params))
        made = generate(
            Topics.load(path),
            params.run.seed,
            train=section.prompts,
            development=max(1, round(section.prompts * section.development_fraction)),
            test=max(1, round(section.prompts * section.test_fraction)),
        )
        files = {f"prompts_{split}": getattr(made, split) for split in SPLITS}
        return _material(self, f"{self.title}, generated from run.seed", files, params, lambda kept: kept)


def _material(
    problem: Instructions, source: str, files: Files, params: Params, finish: Callable[[Files], Files]
) -> Material:
    """Return material whose files keep the rows that are not dropped."""
    raw = [RawRow(name, line, row["prompt"]) for name, own in files.items() for line, row in enumerate(own, 1)]

    def kept(cleaned: Cleaned) -> Files:
        left = {(row.file, row.line) for row in cleaned.rows}
        return finish({name: [r for n, r in enumerate(own, 1) if (name, n) in left] for name, own in files.items()})

    return Material(problem, source, raw, [], params.prepare.max_dropped, kept)


def _split(given: Sequence[dict[str, Any]], params: Params) -> Files:
    """Split rows by prompt into training, development and test."""
    section = params.prepare
    by_text = {json.dumps(row["prompt"]): row for row in given}
    shares = {"development": section.development_fraction, "test": section.test_fraction}
    raw = [RawRow("given", line, row["prompt"]) for line, row in enumerate(given, 1)]
    splits = split_by_prompt(raw, {"train": 1 - sum(shares.values()), **shares}, params.run.seed)
    return {f"prompts_{name}": [by_text[json.dumps(row.prompt)] for row in own] for name, own in splits.items()}
