"""Held-out figures of a reward model."""

from collections.abc import Container
from typing import Any

import torch
from torch import Tensor

from rlhf_core.algorithms.base.rankings import ordered_alike
from rlhf_core.common.batch import Unit, collate_units
from rlhf_core.common.data import Data
from rlhf_core.feedback.judgement import PREFERENCES
from rlhf_core.maths.metrics import pair_metrics, root_mean_square
from rlhf_core.models.ensembles import ScalarEnsemble
from rlhf_core.models.forward import score_outputs
from rlhf_core.models.store import ScalarModel
from tasks.common.rows import preference_units, row_sources
from tasks.files.paths import FEEDBACK, rows
from tasks.reward_models.feedback import Fit
from tasks.reward_models.start import Start
from tasks.runtime.stage import Stage


def pair_metrics_of(stage: Stage, begin: Start, model: ScalarModel | ScalarEnsemble, fit: Fit) -> dict[str, Any]:
    """Accuracy, log-loss and calibration on held-out preferences without ties; also separately for each source.

    The first figures are those on the sources that the model learns from. The loss's own link turns raw scores into
    probabilities. A loss without a link has only the accuracy.
    """
    path = rows(FEEDBACK, PREFERENCES, "development")
    units = preference_units(path, begin.reader)
    untied = [index for index, unit in enumerate(units) if unit[0].preference != 0.5]
    scores = _scores(stage, begin, model, [units[index] for index in untied])
    named = row_sources(path)
    sources = [named[index] for index in untied]

    def measured(of: Container[str | None] | None) -> dict[str, Any]:
        own = torch.tensor([of is None or source in of for source in sources], device=scores.device)
        chosen, rejected = scores[0::2][own], scores[1::2][own]
        return pair_metrics(chosen, rejected, fit.algorithm.link) | {"held_out_pairs": int(own.sum())}

    by_source = {source: measured([source]) for source in sorted({source for source in sources if source is not None})}
    return measured(fit.sources) | ({"sources": by_source} if by_source else {})


def native_metrics(stage: Stage, begin: Start, model: ScalarModel | ScalarEnsemble, fit: Fit) -> dict[str, float]:
    """For ratings, the error on the annotators' scale. For rankings, the share of their pairs in the right order."""
    if not fit.held_out or fit.algorithm.data is Data.PAIRS:
        return {}
    scores = _scores(stage, begin, model, fit.held_out)
    held_out = [row for unit in fit.held_out for row in unit]
    if fit.rating_scale is not None:
        ratings = torch.tensor([row.rating for row in held_out], device=scores.device)
        return {"rmse": fit.rating_scale[1] * root_mean_square(scores + model.offset - ratings)}
    ranks = torch.tensor([row.rank for row in held_out], device=scores.device)
    sizes = [len(unit) for unit in fit.held_out]
    rankings = zip(torch.split(scores, sizes), torch.split(ranks, sizes), strict=True)
    return {"ranking_accuracy": torch.stack([ordered_alike(*ranking) for ranking in rankings]).mean().item()}


@torch.no_grad()
def _scores(stage: Stage, begin: Start, model: ScalarModel | ScalarEnsemble, units: list[Unit]) -> Tensor:
    """Centred scores in the unit of the loss, one per row of the units."""
    pad_id = begin.tokenizer.pad_token_id
    device = next(model.parameters()).device
    size = stage.params.reward.micro_batch_size
    parts = [collate_units(units[start : start + size], pad_id) for start in range(0, len(units), size)]
    return torch.cat([score_outputs(model, part.to(device)).scores for part in parts]) * model.scale
