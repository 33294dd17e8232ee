"""Batches: one field per kind of feedback, and rollouts with NaN for tensors that are not computed."""

import math
from dataclasses import fields, replace

import pytest
import torch

import tiny
from rlhf_core.common.batch import Batch, Example, Outputs, Rollout, collate, collate_units
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
def test_each_kind_of_feedback_fills_only_its_field(name):
    batch = collate([replace(ROWS[0], **{name: 0.25}), ROWS[1]], PAD)
    for field in (*JUDGED.values(), "reference_points"):
        first, second = getattr(batch, field).tolist()
        assert math.isnan(second)
        assert first == 0.25 if field == JUDGED[name] else math.isnan(first)


def test_a_rollout_has_its_batch_and_the_computed_tensors():
    """All other tensors are NaN and have their final shape."""
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


def test_row_mean_is_weighted():
    """(½ · 1 + 3/2 · 3) / 2 = 2.5."""
    rollout = Rollout.of(collate(ROWS, PAD), row_weights=torch.tensor([0.5, 1.5]))
    assert rollout.row_mean(torch.tensor([1.0, 3.0])) == 2.5


def test_prompts_are_padded_on_the_left_and_responses_on_the_right():
    """Prompts of 1 and 2 tokens, responses of 3 and 1 tokens; the pad token is 9."""
    batch = collate([Example([6], [7, 8, END], preference=1.0), Example([6, 7], [END], margin=0.5)], 9)
    assert batch.input_ids.tolist() == [[9, 6, 7, 8, END], [6, 7, END, 9, 9]]
    assert batch.attention_mask.tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch.response_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.response_ids.tolist() == [[7, 8, END], [END, 9, 9]]
    assert batch.lengths.tolist() == [3, 1]


def test_reference_logprobs_are_0_in_padding_and_nan_if_missing():
    """0 times NaN is NaN, so NaN in padding would make every masked sum NaN."""
    batch = collate([Example([6], [7, END], ref_logprobs=[-1.0, -2.0]), Example([6], [END], ref_logprobs=[-3.0])], 9)
    assert batch.ref_logprobs.tolist() == [[-1, -2], [-3, 0]]
    assert collate([Example([6], [END])], 9).ref_logprobs.isnan().all()


def test_rows_have_the_number_of_their_unit():
    rows = tiny.examples(4)
    batch = collate_units([(rows[0],), (rows[1], rows[2], rows[3])], 9)
    assert batch.units.tolist() == [0, 1, 1, 1]
    assert batch.unit_sizes == [1, 3]


def test_values_that_are_not_computed_are_nan():
    batch = collate(tiny.examples(2), 9)
    outputs = Outputs.of(batch, logprobs=torch.zeros_like(batch.response_mask))
    assert outputs.logprobs.isfinite().all()
    for value in (outputs.entropies, outputs.values, outputs.scores, outputs.exact_kl):
        assert value.isnan().all()
    assert outputs.scores.shape == (2,)


def test_token_weights_include_row_weights():
    """Rows of 2 and 1 tokens with weights 1½ and ½."""
    batch = collate([Example([6], [7, END]), Example([6], [END])], 9)
    rollout = tiny.rollout_of(batch, old_logprobs=torch.zeros(2, 2))
    assert rollout.token_weights.tolist() == [[1, 1], [1, 0]]
    weighted = replace(rollout, row_weights=torch.tensor([1.5, 0.5]))
    assert weighted.token_weights.tolist() == [[1.5, 1.5], [0.5, 0]]
