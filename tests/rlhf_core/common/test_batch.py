"""Batches: one field per thing that was judged, and rollouts of which only what was computed can be read."""

import math
from dataclasses import fields, replace

import pytest
import torch

from rlhf_core.common.batch import Batch, Example, Rollout, collate
from tiny import END, PAD

ROWS = [Example([6], [7, END]), Example([6, 7], [END])]
JUDGED = {
    "preference": "preferences",
    "margin": "margins",
    "rating": "ratings",
    "rank": "ranks",
    "desirable": "desirable",
}


@pytest.mark.parametrize("name", JUDGED)
def test_what_was_judged_fills_its_own_field_alone(name):
    batch = collate([replace(ROWS[0], **{name: 0.25}), ROWS[1]], PAD)
    for field in (*JUDGED.values(), "reference_points"):
        first, second = getattr(batch, field).tolist()
        assert math.isnan(second)
        assert first == 0.25 if field == JUDGED[name] else math.isnan(first)


def test_a_rollout_holds_its_batch_and_what_was_computed():
    """Everything else is NaN, of the shape that it will have."""
    batch = collate([replace(ROWS[0], margin=2.0), ROWS[1]], PAD)
    scores, units = torch.tensor([1.0, 2.0]), torch.tensor([0, 0])
    rollout = Rollout.of(batch, scores=scores, units=units)
    assert rollout.scores is scores
    assert rollout.units is units
    for item in fields(Batch):
        if item.name != "units":
            assert getattr(rollout, item.name) is getattr(batch, item.name)
    for name in ("old_logprobs", "old_values", "rewards", "advantages", "returns"):
        assert getattr(rollout, name).shape == (2, 2)
        assert getattr(rollout, name).isnan().all()
    for name in ("ended", "row_weights"):
        assert getattr(rollout, name).shape == (2,)
        assert getattr(rollout, name).isnan().all()
    with pytest.raises(TypeError, match="old_logprob"):
        Rollout.of(batch, old_logprob=scores)


def test_row_mean_counts_rows_by_their_weights():
    """(½ · 1 + 3/2 · 3) / 2 = 2.5."""
    rollout = Rollout.of(collate(ROWS, PAD), row_weights=torch.tensor([0.5, 1.5]))
    assert rollout.row_mean(torch.tensor([1.0, 3.0])) == 2.5
