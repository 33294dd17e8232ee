"""Sampling in a stage: a named stream gives the same responses regardless of earlier draws."""

import torch

import tiny
from tasks.common.sampling import make_sampler, sample_responses


def test_responses_depend_on_their_stream_alone(tokenizer):
    policy = tiny.rotary()
    prompts, sampler = tiny.prompts_of(["a", "b c"] * 8), make_sampler(policy, tokenizer, 4, 1.0)
    first = sample_responses(policy, tokenizer, prompts, sampler, (0, "one"))
    torch.rand(7)
    assert sample_responses(policy, tokenizer, prompts, sampler, (0, "one")) == first
    assert sample_responses(policy, tokenizer, prompts, sampler, (0, "two")) != first
    assert sample_responses(policy, tokenizer, prompts, sampler, (1, "one")) != first
