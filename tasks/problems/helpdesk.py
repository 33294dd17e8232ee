"""The help desk, the embedded default: generated from the seed, with a gold rubric that the simulated panel shares."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING

from helpdesk.generate import generate
from helpdesk.rubric import GOLD_WEIGHTS, features, gold_score
from helpdesk.world import World
from tasks.data.formats import RawRow
from tasks.params.schema import Params
from tasks.params.sections import PrepareParams
from tasks.problems.material import Generated, Material
from tasks.problems.problem import Counts, Gold, Messages, text_judge

if TYPE_CHECKING:
    from rlhf_core.scoring.judges import ScoreJudge


@dataclass(frozen=True)
class Rubric:
    """The gold rubric of one world; it reads the customer's last message."""

    world: World

    @property
    def weights(self) -> Mapping[str, float]:
        """Of each feature."""
        return GOLD_WEIGHTS

    def features(self, prompt: Messages, response: str) -> Mapping[str, float]:
        """What the rubric sees."""
        return features(self.world, prompt[-1]["content"], response)

    def score(self, prompt: Messages, response: str) -> float:
        """The gold score."""
        return gold_score(self.world, prompt[-1]["content"], response)


class HelpDesk(Generated):
    """Customers' messages and replies, all written by this project."""

    kinds = ("helpdesk",)
    has_feedback = True
    has_judge = True
    has_panel = True

    def gold(self, prepare: PrepareParams) -> Gold:
        """The rubric."""
        return Rubric(World.load(Path(prepare.path)))

    def judge(self, prepare: PrepareParams) -> "ScoreJudge":
        """The gold score."""
        gold = self.gold(prepare)
        return text_judge("gold rubric", lambda prompt, text: gold.score(prompt.messages, text))

    def setting_for(self, form: str, file: str) -> str:
        """The panel can be asked for any form."""
        return f"collect.form to {form}"

    def count_rows(self, params: Params, given: int) -> Counts:
        """What is generated, whatever was given, and one preference at most for each pair that the panel judges."""
        prepare, sample = params.prepare, params.sample
        prompts = int(prepare.prompts * (1 - prepare.development_fraction - prepare.test_fraction))
        asked = min(sample.prompts, prompts)
        pairs = asked * comb(sample.responses * len(sample.checkpoints), 2) * params.collect.judgements
        asked += sample.development_prompts
        return Counts(prepare.threads, prepare.demonstrations, prompts, pairs, 0, asked)

    def look(self, prepare: PrepareParams, root: Path) -> str:
        """Read the world."""
        World.load(root / prepare.path)
        return f"{prepare.path}, the help desk"

    def generate(self, params: Params) -> Material:
        """Draw threads, demonstrations and prompts from the seed."""
        desk = generate(
            World.load(Path(params.prepare.path)),
            params.run.seed,
            threads=params.prepare.threads,
            demonstrations=params.prepare.demonstrations,
            prompts_train=params.prepare.prompts,
        )
        files = {
            "threads": desk.threads,
            "demonstrations_train": desk.demonstrations,
            "demonstrations_development": desk.prompts_development,
            "prompts_train": desk.prompts_train,
            "prompts_development": desk.prompts_development,
            "prompts_test": desk.prompts_test,
        }
        rows = [
            RawRow(file=name, line=line, prompt=row["prompt"], response=row["response"])
            for name in ("threads", "demonstrations_train", "demonstrations_development", "prompts_test")
            for line, row in enumerate(files[name], 1)
        ]
        texts = [text for row in desk.threads for text in (*(m["content"] for m in row["prompt"]), row["response"])]
        # Written by us: a row that had to be dropped, other than a duplicate, would be a fault of the world file.
        return Material(self, "the help desk, generated from run.seed", rows, texts, 0.0, lambda cleaned: files)
