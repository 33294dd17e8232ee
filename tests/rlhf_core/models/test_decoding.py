"""Decoding: logits of every step, one seed per row, unequal groups, removed rows, processors, stop strings, bf16."""

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, MistralConfig, Qwen2Config, Qwen3Config

import tiny
from rlhf_core.common.errors import UserError
from rlhf_core.common.lora import Lora
from rlhf_core.models import decoding, linear
from rlhf_core.models.adapters import Base, adapter_parameters, add_adapter
from rlhf_core.models.attention import has_layouts, without_layouts
from rlhf_core.models.cache import PromptLayout, RowLayout
from rlhf_core.models.drawing import Draws, Ends
from rlhf_core.models.forward import response_logprobs
from rlhf_core.models.precision import set_compute
from rlhf_core.models.sampling import LocalSampler
from tiny import END, PAD

GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2}
SIZES = {"vocab_size": tiny.VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
SIZES |= {"max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": PAD, "eos_token_id": END}
MODELS = {
    "llama": lambda: tiny.rotary(**GROUPED),
    "gpt2": tiny.learned,
    "mistral": lambda: tiny._policy(MistralConfig(**SIZES | GROUPED, sliding_window=None), 0),
    "qwen2": lambda: tiny._policy(Qwen2Config(**SIZES | GROUPED), 0),
    "qwen3": lambda: tiny._policy(Qwen3Config(**SIZES | GROUPED, head_dim=8), 0),
}
PROMPTS = [[6, 8, 9]] * 4 + [[7]] * 3 + [[6, 8, 9]] + [[10, 11, 6, 7, 8]] * 2  # groups of 5, 3 and 2
SEEDS = range(100, 110)
LONGEST = 12
SAMPLER = LocalSampler(LONGEST, (END,), PAD)


@pytest.fixture(params=MODELS)
def policy(request):
    """A model in float64 of each family with a fast path, with fewer key heads where the family can have them."""
    model = MODELS[request.param]().double()
    assert has_layouts(model)
    return model


def drawn(policy, prompts, seeds, sampler=SAMPLER):
    """What was drawn from the fast path."""
    return sampler._draw(policy, prompts, seeds, Ends(sampler.stop_tokens))


def ids_of(results):
    return [one.ids for one in results]


def plain(policy, prompts, seeds, sampler=SAMPLER):
    """What was drawn from `generate`."""
    with without_layouts(policy):
        assert not has_layouts(policy)
        return sampler._draw(policy, prompts, seeds, Ends(sampler.stop_tokens))


def watched(monkeypatch):
    """The logits and rows of each step, as they are drawn from."""
    steps, draw = [], Draws.draw

    def spy(self, logits, rows):
        steps.append((logits.clone(), rows.clone()))
        return draw(self, logits, rows)

    monkeypatch.setattr(Draws, "draw", spy)
    return steps


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_logits_of_every_step_equal_a_forward_pass_of_the_whole_row(policy, monkeypatch, dtype, tolerance):
    """Groups are unequal and prompts have different lengths; rows are removed on the way."""
    policy, steps = policy.to(dtype), watched(monkeypatch)
    responses = ids_of(drawn(policy, PROMPTS, SEEDS))
    assert len({len(response) for response in responses}) > 2
    counts = [len(rows) for _, rows in steps]
    assert sorted(counts, reverse=True) == counts
    assert counts[-1] <= len(PROMPTS) / 2
    for row, (prompt, response) in enumerate(zip(PROMPTS, responses, strict=True)):
        with torch.no_grad(), without_layouts(policy):
            expected = policy(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        found = [logits[rows == row] for logits, rows in steps]
        for step in range(len(response)):
            assert (found[step] - expected[step]).abs().max() < tolerance


def test_fast_and_plain_path_draw_the_same_text(policy):
    fast, slow = drawn(policy, PROMPTS, SEEDS), plain(policy, PROMPTS, SEEDS)
    assert ids_of(fast) == ids_of(slow)
    assert [one.ended for one in fast] == [one.ended for one in slow]
    for one, other in zip(fast, slow, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-6)  # generate computes them in float32


def test_a_text_depends_only_on_its_prompt_and_seed(policy):
    """Alone, in the other order, in other groups, and beside other rows, in float64."""
    together = ids_of(drawn(policy, PROMPTS, SEEDS))
    alone = [ids_of(drawn(policy, [prompt], [seed]))[0] for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
    assert alone == together
    assert ids_of(drawn(policy, PROMPTS[::-1], SEEDS[::-1])) == together[::-1]
    others = [[9, 9]] * 7 + [[7]] * 9
    assert ids_of(drawn(policy, others + PROMPTS, [*range(16), *SEEDS]))[16:] == together
    in_parts = LocalSampler(LONGEST, (END,), PAD, rows=3).token_ids(policy, PROMPTS, SEEDS)
    assert in_parts == together
    assert ids_of(drawn(policy, PROMPTS, [seed + 1000 for seed in SEEDS])) != together


def test_a_shorter_limit_cuts_the_same_text(policy):
    longer = ids_of(drawn(policy, PROMPTS, SEEDS))
    assert ids_of(drawn(policy, PROMPTS, SEEDS, LocalSampler(3, (END,), PAD))) == [ids[:3] for ids in longer]


@pytest.mark.pitfall(9)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_those_of_the_training_forward_pass(policy, temperature):
    policy, tokenizer = policy.float(), tiny.tiny_tokenizer()
    sampler = LocalSampler(LONGEST, (END,), PAD, temperature)
    prompts = tiny.prompts_of(["a c d", "a c d", "b"] * 3)
    responses = sampler.responses(policy, tokenizer, prompts, range(9))
    batch = tiny.responses_of([prompt.ids for prompt in prompts], [one.ids for one in responses]).batch
    expected = response_logprobs(policy, batch, temperature=temperature)
    for row, one in enumerate(responses):
        assert one.logprobs == pytest.approx(expected[row, : len(one.ids)].tolist(), abs=1e-5)


def test_texts_rarely_depend_on_the_batch_in_float32(policy):
    """In float32 a number at the edge of an interval can change the text; at most 1 of 1000 tokens here."""
    policy = policy.float()
    prompts, seeds = PROMPTS * 12, range(120)
    together = ids_of(drawn(policy, prompts, seeds, LocalSampler(LONGEST, (END,), PAD, rows=120)))
    apart = LocalSampler(LONGEST, (END,), PAD, rows=7).token_ids(policy, prompts, seeds)
    differing = sum(one != other for one, other in zip(together, apart, strict=True))
    assert differing <= sum(map(len, together)) / 1000


def test_each_distinct_prompt_is_read_once_and_kept_once(policy, monkeypatch):
    read, keep = [], []
    attend, arrange = PromptLayout.attend, RowLayout._arrange

    def spy(self, layer, query, key, value, scaling):
        read.append(key.shape[0])
        return attend(self, layer, query, key, value, scaling)

    def arranged(self, counts):
        keep.append((self.prompt_keys[0].shape[1], list(counts)))
        arrange(self, counts)

    monkeypatch.setattr(PromptLayout, "attend", spy)
    monkeypatch.setattr(RowLayout, "_arrange", arranged)
    drawn(policy, PROMPTS, SEEDS)
    assert read == [3] * 2  # two layers
    assert keep[0] == (3, [5, 3, 2])
    assert all(prompts == len(counts) and min(counts) > 0 for prompts, counts in keep)
    assert len(keep) > 1


@pytest.mark.parametrize("removed", [0.01, 1.1])
def test_removed_rows_do_not_change_the_others(policy, monkeypatch, removed):
    """Rows are removed as soon as they finish, or never."""
    expected = drawn(policy, PROMPTS, SEEDS)
    monkeypatch.setattr(decoding, "REMOVED", removed)
    assert ids_of(drawn(policy, PROMPTS, SEEDS)) == ids_of(expected)


def test_a_step_stops_when_all_rows_have_ended(monkeypatch):
    policy, steps = tiny.rotary(), watched(monkeypatch)
    policy.lm_head.weight.data.zero_()
    policy.lm_head.weight.data[END] = 1e6
    responses = drawn(policy, [[6]] * 3, range(3), LocalSampler(LONGEST, tuple(range(tiny.VOCABULARY)), PAD))
    assert [len(one.ids) for one in responses] == [1, 1, 1]
    assert len(steps) == 1


class Forced(LogitsProcessor):
    """Ends row i after lengths[i] tokens, and checks the ids that it is given."""

    def __init__(self, prompts, lengths):
        self.prompts, self.lengths, self.calls = prompts, torch.tensor(lengths), 0

    def __call__(self, input_ids, scores):
        width = max(map(len, self.prompts))
        self.calls += 1
        assert input_ids.shape == (len(self.prompts), width + self.calls - 1)
        for row, prompt in enumerate(self.prompts):
            assert input_ids[row, :width].tolist() == [PAD] * (width - len(prompt)) + prompt
        ends = self.lengths == self.calls
        scores[:, END] = -torch.inf
        scores[ends] = -torch.inf
        scores[ends, END] = 0.0
        return scores


def test_processors_force_lengths_while_rows_are_removed(policy, monkeypatch):
    """The lengths are forced on both paths, the texts agree, and log-probabilities are those of the policy."""
    lengths = [2, 9, 4, 4, 1, 7, 3, 12, 5, 2]
    results, counts = [], []
    for draw in (drawn, plain):
        processors = LogitsProcessorList([Forced(PROMPTS, lengths)])
        steps = watched(monkeypatch)
        results.append(draw(policy, PROMPTS, SEEDS, LocalSampler(12, (END,), PAD, logits_processors=processors)))
        counts.append(sum(len(rows) for _, rows in steps))
        monkeypatch.undo()
    fast, slow = results
    assert [len(one.ids) for one in fast] == lengths
    assert ids_of(fast) == ids_of(slow)
    assert counts[0] < 0.8 * counts[1]
    batch = tiny.responses_of(PROMPTS, ids_of(fast)).batch
    expected = response_logprobs(policy, batch)
    for row, one in enumerate(fast):
        assert one.logprobs == pytest.approx(expected[row, : len(one.ids)].tolist(), abs=1e-5)


@pytest.mark.pitfall(29)
def test_truncation_is_declared():
    assert not LocalSampler(4, (END,), PAD).truncates
    assert not LocalSampler(4, (END,), PAD, 0.5, logits_processors=LogitsProcessorList()).truncates
    for options in ({"top_k": 5}, {"top_p": 0.9}, {"stop_strings": ("a",)}):
        assert LocalSampler(4, (END,), PAD, **options).truncates


@pytest.mark.parametrize("draw", [drawn, plain])
def test_top_k_and_top_p(draw):
    """Probabilities 0.5, 0.3, 0.2 of words 6, 7, 8: top_k 2 and top_p 0.7 leave the first two, with odds 5 to 3."""
    policy = tiny.rotary()
    policy.lm_head = torch.nn.Linear(16, tiny.VOCABULARY)
    policy.lm_head.weight.data.zero_()
    policy.lm_head.bias.data[:] = -torch.inf
    policy.lm_head.bias.data[6:9] = torch.tensor([0.5, 0.3, 0.2]).log()
    for options in ({"top_k": 2}, {"top_p": 0.7}, {}):
        sampler = LocalSampler(1, (END,), PAD, rows=4000, **options)
        results = draw(policy, [[6]] * 4000, range(4000), sampler)
        found = torch.bincount(torch.tensor(ids_of(results))[:, 0], minlength=9)[6:9] / 4000
        expected = torch.tensor([0.625, 0.375, 0.0] if options else [0.5, 0.3, 0.2])
        assert (found - expected).abs().max() < 0.04
        assert set(found[expected == 0].tolist()) <= {0.0}
        assert {round(one.logprobs[0], 4) for one in results if one.ids == [6]} == {-0.6931}  # before truncation


@pytest.mark.parametrize("is_plain", [False, True])
def test_stop_strings_end_a_response_and_its_text(is_plain):
    """Words follow each other: b c d e f. The string "dx" never occurs; the limit can cut at the same token."""
    policy, tokenizer = tiny.rotary(), tiny.tiny_tokenizer()
    with torch.no_grad():
        for layer in policy.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        policy.model.embed_tokens.weight.copy_(torch.eye(tiny.VOCABULARY, 16))
        policy.lm_head.weight.zero_()
        for last in range(6, 11):
            policy.lm_head.weight[last + 1, last] = 1.0
    prompts = tiny.prompts_of(["a", "c"])
    sampler = LocalSampler(4, (END,), PAD, temperature=0, stop_strings=("d", "dx"))
    if is_plain:
        with without_layouts(policy):
            first, second = sampler.responses(policy, tokenizer, prompts, range(2))
    else:
        first, second = sampler.responses(policy, tokenizer, prompts, range(2))
    assert (first.ids, first.text, first.ended) == ([7, 8, 9], "b c", True)
    assert (second.ids, second.text, second.ended) == ([9], "", True)
    cut = LocalSampler(3, (END,), PAD, temperature=0, stop_strings=("d",))
    assert cut.responses(policy, tokenizer, prompts[:1], [0])[0].ended
    assert not LocalSampler(2, (END,), PAD, temperature=0).responses(policy, tokenizer, prompts[:1], [0])[0].ended


def test_compute_in_bf16(policy):
    """Under bf16 the logits are those of autocast; the keys are kept in bf16, and the softmax is in float32."""
    policy = policy.float()
    exact = drawn(policy, PROMPTS, SEEDS)
    set_compute(policy, "bf16")
    rounded = drawn(policy, PROMPTS, SEEDS)
    assert not torch.is_autocast_enabled("cpu")
    gaps = [
        abs(a - b)
        for one, other in zip(exact, rounded, strict=True)
        if one.ids == other.ids
        for a, b in zip(one.logprobs, other.logprobs, strict=True)
    ]
    assert 1e-5 < max(gaps) < 0.15
    assert {value == torch.tensor(value, dtype=torch.bfloat16).item() for value in rounded[0].logprobs} == {False}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_laid_out_change_only_rounding_and_are_made_for_every_call(monkeypatch, precision):
    policy = tiny.rotary(hidden_size=32)
    set_compute(policy, precision)
    expected = drawn(policy, PROMPTS, SEEDS)
    monkeypatch.setattr(linear, "SMALLEST", 1)
    used, packed = [], linear._packed_linear
    monkeypatch.setattr(linear, "_packed_linear", lambda *given: used.append(1) or packed(*given))
    found = drawn(policy, PROMPTS, SEEDS)
    assert len(used) > 10
    if precision == "fp32":
        assert ids_of(found) == ids_of(expected)
    for one, other in zip(found, expected, strict=True):
        if one.ids == other.ids:
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5 if precision == "fp32" else 0.1)
    policy.lm_head.weight.data.mul_(0)
    assert drawn(policy, [[6]], [0])[0].logprobs[0] == pytest.approx(-torch.tensor(float(tiny.VOCABULARY)).log().item())


@pytest.mark.parametrize("budget", [linear.BUDGET, 0])
def test_adapters_act_in_decoding_with_and_without_copies(policy, monkeypatch, budget):
    """A and B are far from 0, and the layers they change are called as they are once the budget is spent."""
    before = ids_of(drawn(policy, PROMPTS, SEEDS))
    add_adapter(policy, Lora(r=2, lora_alpha=4), Base("base", "0"))
    for _, weight in adapter_parameters(policy):
        torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(weight.numel()))
    policy.double().eval()
    monkeypatch.setattr(linear, "BUDGET", budget)
    fast, slow = drawn(policy, PROMPTS, SEEDS), plain(policy, PROMPTS, SEEDS)
    assert ids_of(fast) == ids_of(slow) != before
    for one, other in zip(fast, slow, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-6)


def test_copies_stay_within_the_budget(monkeypatch):
    """Two matrices of 4 x 4 in float32 take 128 bytes."""
    layers = [torch.nn.Linear(4, 4) for _ in range(2)]
    states = torch.randn(3, 4)
    expected = torch.cat([layer(states) for layer in layers], -1)
    for budget, left in ((128, 0), (127, 127)):
        monkeypatch.setattr(linear, "BUDGET", budget)
        copies = linear.LinearCopies(torch.device("cpu"))
        assert torch.allclose(copies.of(*layers)(states), expected, atol=1e-6)
        assert copies.left == left
        copies.of(layers[0])
        assert copies.left == left


def test_nan_is_an_error(policy):
    for parameter in policy.parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(UserError, match="computes NaN"):
        drawn(policy, [[6]], [0])


def test_seeds_and_prompts_must_correspond(policy):
    with pytest.raises(ValueError, match="2 prompts have 1 seeds"):
        SAMPLER.token_ids(policy, [[6], [7]], [0])
