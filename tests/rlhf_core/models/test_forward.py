"""Forward passes: log-probabilities, scores and values do not depend on padding, batch or mode."""

import dataclasses

import pytest
import torch

import tiny
from rlhf_core.common.batch import Example, collate
from rlhf_core.models.forward import policy_outputs, response_logits, scores, values
from rlhf_core.models.store import (
    ScalarModel,
    load_policy,
    load_scalar_model,
    new_scalar_model,
    save_policy,
    save_scalar_model,
)
from rlhf_core.scoring.rewards import ModelReward
from tiny import END, PAD


def with_columns(batch, left, right):
    """The same rows with more padding on both sides."""
    ids = torch.nn.functional.pad(batch.input_ids, (left, right), value=PAD)
    return dataclasses.replace(
        batch,
        input_ids=ids,
        attention_mask=torch.nn.functional.pad(batch.attention_mask, (left, right)),
        response_mask=torch.nn.functional.pad(batch.response_mask, (0, right)),
        ref_logprobs=torch.nn.functional.pad(batch.ref_logprobs, (0, right)),
    )


@pytest.mark.pitfall(1)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logprobs_do_not_depend_on_padding_or_batch(family, attention):
    """The library's result without padding equals ours: alone, in a batch, padded left, right, and on both sides."""
    policy = family()
    policy.set_attn_implementation(attention)
    rows = tiny.examples()
    batch = collate(rows, PAD)
    for row, example in enumerate(rows):
        ids = torch.tensor([[*example.prompt_ids, *example.response_ids]])
        logits = policy(ids).logits[0, len(example.prompt_ids) - 1 : -1]
        plain = logits.log_softmax(-1).gather(-1, torch.tensor(example.response_ids)[:, None]).squeeze(-1)
        alone = collate([example], PAD)
        for padded in (alone, with_columns(alone, 3, 0), with_columns(alone, 0, 4), with_columns(alone, 2, 5)):
            found = policy_outputs(policy, padded).logprobs[0, : len(plain)]
            torch.testing.assert_close(found, plain, atol=1e-5, rtol=0)
        together = policy_outputs(policy, batch).logprobs[row]
        torch.testing.assert_close(together[: len(plain)], plain, atol=1e-5, rtol=0)
        assert (together[len(plain) :] == 0).all()


@pytest.mark.pitfall(13)
def test_the_head_on_response_positions_equals_the_whole_pass(family):
    """Forward and backward, compared with a model that ignores `logits_to_keep` and returns all logits."""
    policy, batch = family(), collate(tiny.examples(), PAD)

    def without_option(*, logits_to_keep, **inputs):
        return policy(**inputs)

    found = [policy_outputs(model, batch).logprobs for model in (policy, without_option)]
    torch.testing.assert_close(*found, atol=1e-6, rtol=0)
    gradients = [torch.autograd.grad(logprobs.sum(), list(policy.parameters())) for logprobs in found]
    for kept, whole in zip(*gradients, strict=True):
        torch.testing.assert_close(kept, whole, atol=1e-4, rtol=1e-4)


class ColumnScores(torch.nn.Module):
    """The score of a token is its column, so a score shows where it was read."""

    def forward(self, input_ids, attention_mask, position_ids):
        return torch.arange(input_ids.shape[1]).expand(input_ids.shape).float()


@pytest.mark.pitfall(7)
def test_reward_model_reads_last_real_token():
    """Prompts have columns 0-2, responses 3-6. The score is not read at an end token inside a response."""
    rows = [Example([6, 7, 8], [9, END]), Example([6], [9, END, 9, END]), Example([6, 7], [PAD])]
    assert scores(ColumnScores(), collate(rows, PAD)).tolist() == [4, 6, 3]


@pytest.mark.pitfall(7)
def test_values_are_read_before_their_tokens():
    """V(s_t) is read one column before a_t: responses start at column 3, so 2, 3, ...; 0 after the last token."""
    rows = [Example([6, 7, 8], [9, END]), Example([6], [9, END, 9, END])]
    assert values(ColumnScores(), collate(rows, PAD)).tolist() == [[2, 3, 0, 0], [2, 3, 4, 5]]


@pytest.mark.pitfall(7)
def test_scores_are_those_of_the_library(family, tmp_path, tokenizer):
    """Compared with AutoModelForSequenceClassification on each row alone, without padding."""
    save_policy(family(), tokenizer, tmp_path, max_new_tokens=4)
    model = new_scalar_model(tmp_path)
    assert isinstance(model, ScalarModel)
    rows = tiny.examples()
    with torch.no_grad():
        found = scores(model, collate(rows, PAD))
        plain = [model.model(torch.tensor([[*row.prompt_ids, *row.response_ids]])).logits.item() for row in rows]
    torch.testing.assert_close(found, torch.tensor(plain), atol=1e-5, rtol=0)


@pytest.mark.pitfall(27)
def test_a_score_does_not_depend_on_its_batch(family, tmp_path, tokenizer):
    """Scores are equal alone, in one batch, in microbatches of two, and in reverse order."""
    save_policy(family(), tokenizer, tmp_path, max_new_tokens=4)
    model, rows = new_scalar_model(tmp_path), tiny.examples()
    batch = collate(rows, PAD)
    responses = tiny.responses_of([row.prompt_ids for row in rows], [row.response_ids for row in rows])
    with torch.no_grad():
        together = scores(model, batch)
        alone = torch.cat([scores(model, collate([row], PAD)) for row in rows])
        reverse = scores(model, collate(rows[::-1], PAD)).flip(0)
    for other in (alone, reverse, ModelReward(model, rows=2)(responses)):
        torch.testing.assert_close(other, together, atol=1e-5, rtol=0)


DROPOUT = {
    "rotary": {"attention_dropout": 0.1},
    "learned": {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1},
}


@pytest.mark.pitfall(10)
@pytest.mark.parametrize("name", sorted(DROPOUT))
def test_dropout_is_off_in_every_forward_pass(name, tmp_path, tokenizer):
    """The config of the checkpoint has dropout 0.1; two calls in train mode agree bit for bit."""
    policy = tiny.FAMILIES[name]()
    save_policy(policy, tokenizer, tmp_path, max_new_tokens=4)
    policy.config.update(DROPOUT[name])
    policy.config.save_pretrained(tmp_path)
    model = load_policy(tmp_path).train()
    scalar = new_scalar_model(tmp_path).train()
    save_scalar_model(scalar, tokenizer, tmp_path / "reward")
    scalar.model.config.update(DROPOUT[name])
    scalar.model.config.save_pretrained(tmp_path / "reward")
    loaded = load_scalar_model(tmp_path / "reward").train()
    batch = collate(tiny.examples(), PAD)
    assert torch.equal(policy_outputs(model, batch).logprobs, policy_outputs(model, batch).logprobs)
    for one in (scalar, loaded):
        assert torch.equal(scores(one, batch), scores(one, batch))
        assert torch.equal(values(one, batch), values(one, batch))


@pytest.mark.pitfall(10)
def test_new_models_have_no_dropout():
    for name, changes in DROPOUT.items():
        model = tiny.FAMILIES[name](**changes).train()
        batch = collate(tiny.examples(), PAD)
        assert torch.equal(policy_outputs(model, batch).logprobs, policy_outputs(model, batch).logprobs)


def test_temperature_divides_both_sides_of_the_exact_kl(family):
    """The KL is computed from logits / 0.5 of policy and reference, with a gradient for the policy."""
    policy, reference = family(0), family(1)
    batch = collate(tiny.examples(3), PAD)
    found = policy_outputs(policy, batch, temperature=0.5, reference=reference).exact_kl
    logprobs, ref = ((response_logits(model, batch) / 0.5).log_softmax(-1) for model in (policy, reference))
    expected = (logprobs.exp() * (logprobs - ref)).sum(-1) * batch.response_mask
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    (gradient,) = torch.autograd.grad(found.sum(), policy.lm_head.weight)
    assert gradient.abs().max() > 0.01
