"""From text to token ids: pad, end and beginning tokens, and which tokens are trained."""

import pytest
import torch

import tiny
from rlhf_core.algorithms.base.sft import SFT
from rlhf_core.common.batch import Example, Outputs, collate
from rlhf_core.common.errors import UserError
from rlhf_core.feedback.judgement import Judgement
from rlhf_core.feedback.judgements import preferences
from rlhf_core.maths.losses import token_logprobs
from rlhf_core.models.forward import policy_outputs
from rlhf_core.models.store import fit_vocabulary
from rlhf_core.models.tokens import begins_turns, encode_example, encode_prompt, encode_response, ready_tokenizer
from tasks.common.rows import preference_units, text_units
from tasks.files.jsonl import write_jsonl
from tiny import ASSISTANT, BEGIN, END, PAD, USER

MESSAGES = [{"role": "user", "content": "a b"}]


@pytest.mark.pitfall(2)
def test_preferences_keep_the_sampled_ids(tmp_path, tokenizer):
    """`a` and `b` were sampled as [6, 8] and [7], which differ from the ids of their texts."""
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


@pytest.mark.pitfall(3)
def test_a_pad_token_equal_to_the_end_token_is_replaced():
    tokenizer = ready_tokenizer(tiny.tiny_tokenizer(pad_token="<end>"))
    assert tokenizer.eos_token_id == END
    assert tokenizer.pad_token_id == tiny.VOCABULARY  # a new id
    assert ready_tokenizer(tiny.tiny_tokenizer(pad_token=None)).pad_token_id == tiny.VOCABULARY
    assert ready_tokenizer(tiny.tiny_tokenizer()).pad_token_id == PAD  # a separate pad token is kept


@pytest.mark.pitfall(3)
def test_the_model_gets_an_embedding_for_the_new_pad_token(family):
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


@pytest.mark.pitfall(3)
def test_the_final_end_token_is_trained(tokenizer):
    """ "c d" has three tokens with its end token, "e" two; the third column of the second row is padding."""
    rows = [encode_example(tokenizer, MESSAGES, "c d"), encode_example(tokenizer, MESSAGES, "e")]
    batch = collate(rows, tokenizer.pad_token_id)
    assert batch.response_ids.tolist() == [[8, 9, END], [10, END, PAD]]
    assert batch.response_mask.tolist() == [[1, 1, 1], [1, 1, 0]]


def test_raw_text_trains_every_token_but_the_first(tmp_path, tokenizer):
    """<user> a b <assistant> c <end>: 5 of 6 tokens, including the user's words and the role token."""
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


@pytest.mark.pitfall(4)
@pytest.mark.parametrize("written", [0, 1, 2])
def test_exactly_one_beginning_token_with_any_template(written):
    """The template writes none, one or two beginning tokens; the tokenizer adds another."""
    template = "{{ bos_token }} " * written + tiny.TEMPLATE
    tokenizer = ready_tokenizer(tiny.tiny_tokenizer(bos_token="<begin>", chat_template=template))
    add_beginning(tokenizer)
    assert encode_prompt(tokenizer, MESSAGES) == [BEGIN, USER, 6, 7, ASSISTANT]
    assert encode_response(tokenizer, "a") == [6, END]


@pytest.mark.pitfall(4)
def test_no_beginning_token_if_the_model_expects_none():
    tokenizer = ready_tokenizer(tiny.tiny_tokenizer(bos_token="<begin>"))
    assert encode_prompt(tokenizer, MESSAGES) == [USER, 6, 7, ASSISTANT]
    assert encode_prompt(ready_tokenizer(tiny.tiny_tokenizer()), MESSAGES) == [USER, 6, 7, ASSISTANT]


@pytest.mark.pitfall(4)
def test_which_templates_begin_every_turn():
    every = "{% for message in messages %}{{ bos_token }} {{ message['content'] }} {% endfor %}"
    single = "{% if messages|length > 1 %}{{ raise_exception('one turn') }}{% endif %}{{ bos_token }}"
    for template, expected in ((every, True), ("{{ bos_token }} " + tiny.TEMPLATE, False), (single, False)):
        tokenizer = ready_tokenizer(tiny.tiny_tokenizer(bos_token="<begin>", chat_template=template))
        assert begins_turns(tokenizer) == expected


def add_beginning(tokenizer):
    """Make the tokenizer add its beginning token to every text, as Llama's does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<begin> $A", special_tokens=[("<begin>", BEGIN)]
    )


@pytest.mark.pitfall(5)
@pytest.mark.parametrize(("example", "what"), [(Example([6], []), "response"), (Example([], [6]), "prompt")])
def test_a_row_without_prompt_or_response_raises_and_is_named(example, what):
    """Without response tokens the mask is all 0; without a prompt, the whole row is response."""
    with pytest.raises(UserError, match=f"row 1 of the batch has an empty {what}"):
        collate([Example([6], [7]), example], PAD)
