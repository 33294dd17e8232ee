"""Responses of a sampler: ids, text, and whether they ended."""

import torch

import tiny
from rlhf_core.common.responses import Response
from rlhf_core.models.sampling import LocalSampler, Sampler
from tiny import END, PAD


def says(*tokens):
    """A policy with these most likely tokens, in order, for every prompt."""
    policy = tiny.rotary()
    with torch.no_grad():
        for layer in policy.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        policy.model.embed_tokens.weight.copy_(torch.eye(tiny.VOCABULARY, 16))
        policy.lm_head.weight.zero_()
        for last, token in zip((6, *tokens), tokens, strict=False):
            policy.lm_head.weight[token, last] = 1.0
    return policy


def test_responses_of_the_local_sampler():
    """After a: b and the end token; with a limit of one token, only b, which did not end."""
    policy, tokenizer, reports = says(7, END), tiny.tiny_tokenizer(), []
    prompts = tiny.prompts_of(["a", "a a", "a"])
    sampler: Sampler = LocalSampler(4, (END,), PAD, temperature=0, rows=2)
    drawn = sampler.responses(policy, tokenizer, prompts, range(3), reports.append)
    assert drawn == [Response([7, END], "b", ended=True)] * 3
    assert reports == [2, 1]
    short = LocalSampler(1, (END,), PAD, temperature=0)
    assert short.responses(policy, tokenizer, prompts[:1], [0]) == [Response([7], "b", ended=False)]


def test_tensors_are_made_on_the_device_and_once():
    responses = tiny.responses_of([[6], [6, 7]], [[7, END], [8]], ended=[True, False])
    assert responses.batch is responses.batch
    assert {tensor.device.type for tensor in (responses.batch.input_ids, responses.ended)} == {"cpu"}
    assert responses.batch.input_ids.tolist() == [[PAD, 6, 7, END], [6, 7, 8, PAD]]
    assert responses.texts == ["b <end>", "c"]
