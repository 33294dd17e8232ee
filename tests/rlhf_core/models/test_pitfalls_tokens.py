"""Conformance: tokens and masks. The numbers are those of the project's list of silent faults."""

import dataclasses

import pytest
import torch
from transformers import GenerationConfig

import tiny
from rlhf_core.algorithms.base.sft import SFT
from rlhf_core.common.batch import Example, Outputs, collate
from rlhf_core.common.errors import UserError
from rlhf_core.feedback.judgement import Judgement
from rlhf_core.feedback.judgements import preferences
from rlhf_core.maths.losses import token_logprobs
from rlhf_core.models.forward import policy_outputs, scores, values
from rlhf_core.models.sampling import Sampler, sampled_batch
from rlhf_core.models.store import ScalarModel, fit_vocabulary, load_policy, new_scalar_model, save_policy, stop_tokens
from rlhf_core.models.tokens import encode_example, encode_prompt, encode_response, ready_tokenizer
from rlhf_core.scoring.rewards import MissingEnd, Sampled
from tasks.common.rows import preference_units, text_units
from tasks.files.jsonl import write_jsonl
from tiny import ASSISTANT, BEGIN, END, PAD, STOP, USER

MESSAGES = [{"role": "user", "content": "a b"}]


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


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_pitfall_01_logprobs_do_not_depend_on_padding_or_batch(family, attention):
    """Alone and unpadded by the library itself; alone, in a batch, padded on the left, on the right, on both."""
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


def test_pitfall_13_the_head_on_response_positions_equals_the_whole_pass(family):
    """Forward and backward, against a model that ignores `logits_to_keep` and gives logits everywhere."""
    policy, batch = family(), collate(tiny.examples(), PAD)

    def without_option(*, logits_to_keep, **inputs):
        return policy(**inputs)

    found = [policy_outputs(model, batch).logprobs for model in (policy, without_option)]
    torch.testing.assert_close(*found, atol=1e-6, rtol=0)
    gradients = [torch.autograd.grad(logprobs.sum(), list(policy.parameters())) for logprobs in found]
    for kept, whole in zip(*gradients, strict=True):
        torch.testing.assert_close(kept, whole, atol=1e-4, rtol=1e-4)


def test_pitfall_02_training_sees_the_sampled_ids(family, monkeypatch):
    """Prompt and response of every row are what `generate` was given and returned, cut behind the end token."""
    policy = family()
    returned = []
    generate = policy.generate

    def spy(ids, **options):
        returned.extend(generate(ids, **options)[:, ids.shape[1] :].tolist())
        return torch.cat([ids, torch.tensor(returned)], dim=1)

    monkeypatch.setattr(policy, "generate", spy)
    prompts = [[6], [7, 8, 9], [10, 11]]
    torch.manual_seed(0)
    responses = Sampler(5, (END,), PAD).responses(policy, prompts)
    batch, lengths = sampled_batch(prompts, responses, PAD)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        cut = returned[row][: returned[row].index(END) + 1] if END in returned[row] else returned[row]
        assert response == cut
        assert batch.input_ids[row][batch.attention_mask[row].bool()].tolist() == prompt + cut
        assert batch.response_ids[row][: lengths[row].int()].tolist() == cut


def test_pitfall_02_preferences_keep_the_sampled_ids(tmp_path, tokenizer):
    """`a` and `b` were sampled as [6, 8] and [7]: ids that their texts would not encode to."""
    judgement = Judgement(
        form="side_by_side",
        prompt=MESSAGES,
        responses=["a", "b"],
        response_tokens=[[6, 8], [7]],
        choice="B",
        annotator="one",
        checkpoint="none",
        order=0,
    )
    pairs, _ = preferences([judgement])
    write_jsonl(tmp_path / "preferences.jsonl", pairs)
    ((chosen, rejected),) = preference_units(tmp_path / "preferences.jsonl", tokenizer)
    assert (chosen.response_ids, rejected.response_ids) == ([7], [6, 8])


def test_pitfall_03_pad_equal_to_end_gets_a_pad_of_its_own():
    tokenizer = ready_tokenizer(tiny.tiny_tokenizer(pad_token="<end>"))
    assert tokenizer.eos_token_id == END
    assert tokenizer.pad_token_id == tiny.VOCABULARY  # a new id
    assert ready_tokenizer(tiny.tiny_tokenizer(pad_token=None)).pad_token_id == tiny.VOCABULARY
    assert ready_tokenizer(tiny.tiny_tokenizer()).pad_token_id == PAD  # a pad that is one stays


def test_pitfall_03_the_model_gets_an_embedding_for_the_new_pad(family):
    """The new row is the mean of the others, in the embedding and in the head."""
    policy = family()
    before = policy.get_input_embeddings().weight.detach().clone()
    head = policy.get_output_embeddings().weight.detach().clone()
    fit_vocabulary(policy, ready_tokenizer(tiny.tiny_tokenizer(pad_token="<end>")))
    weight = policy.get_input_embeddings().weight.detach()
    assert weight.shape[0] == tiny.VOCABULARY + 1
    torch.testing.assert_close(weight[:-1], before, atol=0, rtol=0)
    torch.testing.assert_close(weight[-1], before.mean(0))
    torch.testing.assert_close(policy.get_output_embeddings().weight.detach()[-1], head.mean(0))


def test_pitfall_03_the_final_end_token_is_trained(tokenizer):
    """ "c d" ends and is three tokens with its end; "e" is two; the third column of the second row is padding."""
    rows = [encode_example(tokenizer, MESSAGES, "c d"), encode_example(tokenizer, MESSAGES, "e")]
    batch = collate(rows, tokenizer.pad_token_id)
    assert batch.response_ids.tolist() == [[8, 9, END], [10, END, PAD]]
    assert batch.response_mask.tolist() == [[1, 1, 1], [1, 1, 0]]


def test_raw_text_trains_every_token_but_the_first(tmp_path, tokenizer):
    """<user> a b <assistant> c <end>: 5 of 6 tokens, what the user says and the role token among them."""
    write_jsonl(tmp_path / "threads.jsonl", [{"prompt": MESSAGES, "response": "c"}])
    ((row,),) = text_units(tmp_path / "threads.jsonl", tokenizer)
    words = [tiny.WORDS.index(word) for word in ["a", "b", "<assistant>", "c", "<end>"]]
    assert (row.prompt_ids, row.response_ids) == ([USER], words)
    model, batch = tiny.rotary(), collate([row], PAD)
    logits = model(batch.input_ids).logits
    logits.retain_grad()
    outputs = Outputs.of(batch, logprobs=token_logprobs(logits[:, :-1], batch.input_ids[:, 1:]))
    torch.testing.assert_close(policy_outputs(model, batch).logprobs, outputs.logprobs)
    (SFT().losses(outputs, batch) * SFT().weights(batch)).sum().backward()
    assert (logits.grad[0, :5].abs().amax(-1) > 1e-3).all()


def test_pitfall_03_ended_cut_off_and_padding_are_three_things():
    """[6, END] ended and is padded; [6, 7, 8] was cut off; a sampled pad token is a token like any other."""
    sampler = Sampler(3, (END,), PAD)
    generated = [[6, END, PAD], [6, 7, 8], [6, PAD, END]]
    responses = [sampler._until_end(row) for row in generated]
    assert responses == [[6, END], [6, 7, 8], [6, PAD, END]]
    assert [sampler.ended(response) for response in responses] == [True, False, True]
    batch, lengths = sampled_batch([[USER]] * 3, responses, PAD)
    assert batch.response_mask.tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 1]]
    assert lengths.tolist() == [2, 3, 3]


@pytest.mark.parametrize("written", [0, 1, 2])
def test_pitfall_04_exactly_one_beginning_token_with_any_template(written):
    """The template writes none, one or two; the tokenizer adds one of its own."""
    template = "{{ bos_token }} " * written + tiny.TEMPLATE
    tokenizer = ready_tokenizer(tiny.tiny_tokenizer(bos_token="<begin>", chat_template=template))
    add_beginning(tokenizer)
    assert encode_prompt(tokenizer, MESSAGES) == [BEGIN, USER, 6, 7, ASSISTANT]
    assert encode_response(tokenizer, "a") == [6, END]


def test_pitfall_04_no_beginning_token_where_the_model_expects_none():
    tokenizer = ready_tokenizer(tiny.tiny_tokenizer(bos_token="<begin>"))
    assert encode_prompt(tokenizer, MESSAGES) == [USER, 6, 7, ASSISTANT]
    assert encode_prompt(ready_tokenizer(tiny.tiny_tokenizer()), MESSAGES) == [USER, 6, 7, ASSISTANT]


def add_beginning(tokenizer):
    """Make the tokenizer write its beginning token before every text, as Llama's does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<begin> $A", special_tokens=[("<begin>", BEGIN)]
    )


@pytest.mark.parametrize(("example", "what"), [(Example([6], []), "response"), (Example([], [6]), "prompt")])
def test_pitfall_05_a_mask_of_one_kind_raises_and_names_the_row(example, what):
    """No response token: a mask of zeros. No prompt: a row that is response throughout."""
    with pytest.raises(UserError, match=f"row 1 of the batch has an empty {what}"):
        collate([Example([6], [7]), example], PAD)


def test_pitfall_06_a_prompt_is_never_cut(family):
    """60 tokens and 4 new ones just fit a context of 64; 61 do not, and nothing is truncated to make them fit."""
    policy = family()
    sampler = Sampler(4, (END,), PAD)
    (response,) = sampler.responses(policy, [[6] * 60])
    batch, _ = sampled_batch([[6] * 60], [response], PAD)
    assert batch.input_ids[0, :60].tolist() == [6] * 60
    with pytest.raises(UserError, match="a prompt of 61 tokens and 4 new ones exceed the model's context of 64"):
        sampler.responses(policy, [[6] * 61])


class ColumnScores(torch.nn.Module):
    """Scores every token by its column, so that a score tells where it was read."""

    def forward(self, input_ids, attention_mask, position_ids):
        return torch.arange(input_ids.shape[1]).expand(input_ids.shape).float()


def test_pitfall_07_reward_model_reads_last_real_token():
    """Prompts take columns 0-2, responses 3-6. An end token inside a response is not where it is read."""
    rows = [Example([6, 7, 8], [9, END]), Example([6], [9, END, 9, END]), Example([6, 7], [PAD])]
    assert scores(ColumnScores(), collate(rows, PAD)).tolist() == [4, 6, 3]


def test_pitfall_07_values_stand_before_their_tokens():
    """V(s_t) is read one column before a_t: responses begin at column 3, so 2, 3, ...; 0 behind the last."""
    rows = [Example([6, 7, 8], [9, END]), Example([6], [9, END, 9, END])]
    assert values(ColumnScores(), collate(rows, PAD)).tolist() == [[2, 3, 0, 0], [2, 3, 4, 5]]


def test_pitfall_07_scores_are_those_of_the_library(family, tmp_path, tokenizer):
    """AutoModelForSequenceClassification on each row alone, unpadded."""
    save_policy(family(), tokenizer, tmp_path, max_new_tokens=4)
    model = new_scalar_model(tmp_path)
    assert isinstance(model, ScalarModel)
    rows = tiny.examples()
    with torch.no_grad():
        found = scores(model, collate(rows, PAD))
        plain = [model.model(torch.tensor([[*row.prompt_ids, *row.response_ids]])).logits.item() for row in rows]
    torch.testing.assert_close(found, torch.tensor(plain), atol=1e-5, rtol=0)


def test_pitfall_08_every_stop_token_ends_a_response(tmp_path, tokenizer):
    """Both stop tokens of a checkpoint's generation config survive saving; neither costs the missing-end penalty."""
    policy = tiny.rotary()
    policy.generation_config = GenerationConfig(eos_token_id=[STOP, END])
    save_policy(policy, tokenizer, tmp_path, max_new_tokens=4)
    loaded = load_policy(tmp_path)
    assert loaded.generation_config.eos_token_id == [END, STOP]
    stops = stop_tokens(loaded, tokenizer)
    assert stops == (END, STOP)
    sampler = Sampler(3, stops, PAD)
    responses = [sampler._until_end(row) for row in ([6, STOP, 9], [6, END, PAD], [6, 7, 8])]
    assert responses == [[6, STOP], [6, END], [6, 7, 8]]
    ended = torch.tensor([sampler.ended(response) for response in responses])
    batch, _ = sampled_batch([[USER]] * 3, responses, PAD)
    assert MissingEnd(1.5)(Sampled(batch, ended, [], [])).tolist() == [0, 0, -1.5]


def test_pitfall_08_generation_stops_at_either(tokenizer):
    """A head biased towards one stop token ends every response at once with it."""
    policy = tiny.rotary()
    for stop in (END, STOP):
        policy.lm_head = torch.nn.Linear(16, tiny.VOCABULARY)
        torch.nn.init.zeros_(policy.lm_head.weight)
        torch.nn.init.zeros_(policy.lm_head.bias)
        policy.lm_head.bias.data[stop] = 50.0
        assert Sampler(3, (END, STOP), PAD).responses(policy, [[6], [7, 8]]) == [[stop], [stop]]
