"""Sampling: the tokens of a response, its end, and the distribution of the samples."""

from contextlib import nullcontext

import pytest
import torch
from transformers import GenerationConfig

import tiny
from rlhf_core.common.batch import Example, collate
from rlhf_core.common.errors import UserError
from rlhf_core.models.attention import has_layouts, without_layouts
from rlhf_core.models.drawing import Distribution, Draws, Ends
from rlhf_core.models.forward import policy_outputs
from rlhf_core.models.sampling import LocalSampler
from rlhf_core.models.store import load_policy, save_policy, stop_tokens
from rlhf_core.scoring.terms.missing_end import MissingEnd
from tiny import END, PAD, STOP, USER

PATHS = pytest.mark.parametrize("plain", [False, True], ids=["fast", "plain"])


def path(policy, plain):
    """A context in which a prepared policy takes the fast path or the plain one."""
    assert has_layouts(policy)
    return without_layouts(policy) if plain else nullcontext()


@PATHS
@pytest.mark.pitfall(2)
def test_training_sees_the_sampled_ids(family, monkeypatch, plain):
    """The response of a row is what was drawn, up to the end token; its prompt and these ids are the training row."""
    policy, drawn = family(), []
    draw = Draws.draw

    def spy(self, logits, rows):
        tokens, ends = draw(self, logits, rows)
        drawn.append(dict(zip(rows.tolist(), tokens.tolist(), strict=True)))
        return tokens, ends

    monkeypatch.setattr(Draws, "draw", spy)
    prompts = [[6], [7, 8, 9], [10, 11]]
    with path(policy, plain):
        responses = LocalSampler(5, (END,), PAD).token_ids(policy, prompts, [4, 2, 3])
    batch = tiny.responses_of(prompts, responses).batch
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        returned = [step[row] for step in drawn if row in step]
        cut = returned[: returned.index(END) + 1] if END in returned else returned
        assert response == cut
        assert batch.input_ids[row][batch.attention_mask[row].bool()].tolist() == prompt + cut
        assert batch.response_ids[row][: batch.lengths[row].int()].tolist() == cut
    assert {len(response) for response in responses} != {5}


def through_the_end(rows, stops):
    """The results of draws of these tokens."""
    draws = Draws(torch.zeros(len(rows), 1), range(len(rows)), 3, Distribution(), Ends(stops))
    draws.tokens.copy_(torch.tensor(rows).T)
    return draws.results()


@pytest.mark.pitfall(3)
def test_ended_cut_off_and_padding_are_distinguished():
    """[6, END] ended and is padded; [6, 7, 8] was cut off; a sampled pad token is an ordinary token."""
    drawn = through_the_end([[6, END, PAD], [6, 7, 8], [6, PAD, END]], (END,))
    responses = [one.ids for one in drawn]
    assert responses == [[6, END], [6, 7, 8], [6, PAD, END]]
    assert [one.ended for one in drawn] == [True, False, True]
    assert [len(one.logprobs) for one in drawn] == [2, 3, 3]
    batch = tiny.responses_of([[USER]] * 3, responses).batch
    assert batch.response_mask.tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 1]]
    assert batch.lengths.tolist() == [2, 3, 3]


@pytest.mark.pitfall(6)
def test_a_prompt_is_never_cut(family):
    """60 prompt tokens and 4 new tokens fit a context of 64; 61 do not fit and raise instead of being truncated."""
    policy = family()
    sampler = LocalSampler(4, (END,), PAD)
    (response,) = sampler.token_ids(policy, [[6] * 60], [0])
    batch = tiny.responses_of([[6] * 60], [response]).batch
    assert batch.input_ids[0, :60].tolist() == [6] * 60
    with pytest.raises(UserError, match="a prompt of 61 tokens and 4 new tokens exceed the model's context of 64"):
        sampler.token_ids(policy, [[6] * 61], [0])


@pytest.mark.pitfall(8)
def test_every_stop_token_ends_a_response(tmp_path, tokenizer):
    """Both end tokens of a generation config are kept in saving; neither gets the missing-end penalty."""
    policy = tiny.rotary()
    policy.generation_config = GenerationConfig(eos_token_id=[STOP, END])
    save_policy(policy, tokenizer, tmp_path, max_new_tokens=4)
    loaded = load_policy(tmp_path)
    assert loaded.generation_config.eos_token_id == [END, STOP]
    stops = stop_tokens(loaded, tokenizer)
    assert stops == (END, STOP)
    drawn = through_the_end([[6, STOP, 9], [6, END, PAD], [6, 7, 8]], stops)
    responses, ended = [one.ids for one in drawn], [one.ended for one in drawn]
    assert responses == [[6, STOP], [6, END], [6, 7, 8]]
    assert MissingEnd()(tiny.responses_of([[USER]] * 3, responses, ended)).tolist() == [0, 0, -1]


@PATHS
@pytest.mark.pitfall(8)
def test_generation_stops_at_each_end_token(plain):
    """With a head that is biased to one end token, every response consists of that token."""
    policy = tiny.rotary()
    for stop in (END, STOP):
        policy.lm_head = torch.nn.Linear(16, tiny.VOCABULARY)
        torch.nn.init.zeros_(policy.lm_head.weight)
        torch.nn.init.zeros_(policy.lm_head.bias)
        policy.lm_head.bias.data[stop] = 50.0
        with path(policy, plain):
            assert LocalSampler(3, (END, STOP), PAD).token_ids(policy, [[6], [7, 8]], [0, 1]) == [[stop], [stop]]


@PATHS
@pytest.mark.pitfall(9)
@pytest.mark.pitfall(29)
def test_sampling_follows_the_logprobs_that_are_trained(family, plain):
    """20 000 draws of one token: frequencies within 5 standard errors of exp(logprobs), at temperature 0.7.

    The model's own generation config truncates and changes the distribution. The sampler must ignore it: with
    truncation, the KL estimate can be negative.
    """
    policy = family()
    own = GenerationConfig(do_sample=True, top_k=1, repetition_penalty=9.0, min_new_tokens=3, suppress_tokens=[6, 7])
    policy.generation_config = own
    draws = 20_000
    with path(policy, plain):
        responses = LocalSampler(1, (END,), PAD, 0.7, rows=draws).token_ids(policy, [[6, 8]] * draws, range(draws))
    found = torch.bincount(torch.tensor(responses)[:, 0], minlength=tiny.VOCABULARY) / draws
    batch = collate([Example([6, 8], [token]) for token in range(tiny.VOCABULARY)], PAD)
    with torch.no_grad():
        expected = policy_outputs(policy, batch, temperature=0.7).logprobs[:, 0].exp()
    assert expected.sum().item() == pytest.approx(1)
    assert ((found - expected).abs() <= 5 * (expected * (1 - expected) / draws).sqrt() + 1e-9).all()
    assert policy.generation_config is own
