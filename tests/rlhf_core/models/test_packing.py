"""Packed forward passes: the layout by hand, and the same numbers and gradients as the plain path."""

import copy

import pytest
import torch
from transformers import BloomConfig, MistralConfig, Qwen2Config, Qwen3Config

import tiny
from rlhf_core.common.batch import Example, collate
from rlhf_core.models import head
from rlhf_core.models.attention import has_layouts, use_layouts, without_layouts
from rlhf_core.models.ensembles import ScalarEnsemble
from rlhf_core.models.forward import policy_outputs, scores, values
from rlhf_core.models.packing import Rows, Tree, pack
from rlhf_core.models.store import ScalarModel, new_policy, new_scalar_model, save_policy
from tiny import END, PAD

SHARED = [Example([6, 7], [8, END]), Example([9], [END]), Example([6, 7], [10, 11, END])]
SEPARATE = [Example([6, 7], [8, END]), Example([9], [END])]


def grouped(count=3, group=3, seed=3):
    """Rows of `count` prompts with `group` responses each, in mixed order."""
    rows = tiny.examples(count * group, seed)
    rows = [Example(rows[row % count].prompt_ids, example.response_ids) for row, example in enumerate(rows)]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return [rows[index] for index in order]


def test_a_shared_prompt_is_packed_once():
    """Prompts 6 7 and 9, then the three responses. A response continues the positions of its prompt."""
    packed = pack(collate(SHARED, PAD))
    assert isinstance(packed.layout, Tree)
    assert packed.ids.tolist() == [[6, 7, 9, 8, END, END, 10, 11, END]]
    assert packed.positions.tolist() == [[0, 1, 0, 2, 3, 1, 2, 3, 4]]
    assert packed.before.tolist() == [[1, 3, 0], [2, 0, 0], [1, 6, 7]]
    assert packed.last.tolist() == [4, 5, 8]


def test_rows_without_a_shared_prompt_are_packed_whole():
    packed = pack(collate(SEPARATE, PAD))
    assert isinstance(packed.layout, Rows)
    assert packed.ids.tolist() == [[6, 7, 8, END, 9, END]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 0, 1]]
    assert packed.before.tolist() == [[1, 2], [4, 0]]
    assert packed.last.tolist() == [3, 5]


def test_prompts_of_which_one_begins_with_the_other_are_not_shared():
    """6 7 and 6 7 8: the pad of the shorter prompt is not a token, even if a token has the same id."""
    rows = [Example([6, 7], [END]), Example([6, 7, PAD], [END]), Example([6, 7], [8, END])]
    assert pack(collate(rows, PAD)).ids.shape[1] == 2 + 3 + 1 + 1 + 2


SHAPE = {
    "vocab_size": tiny.VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3, "bos_token_id": None,
    "eos_token_id": END, "pad_token_id": PAD,
}  # fmt: skip
CONFIGS = {
    "qwen2": lambda: Qwen2Config(**SHAPE),
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=8, tie_word_embeddings=True),
    "mistral": lambda: MistralConfig(**SHAPE, sliding_window=None),
}


def model_of(name, seed):
    """A prepared model in float64."""
    if name in tiny.FAMILIES:
        return tiny.FAMILIES[name](seed).double()
    torch.manual_seed(seed)
    return new_policy(CONFIGS[name]()).eval().double()


def numbers_and_gradients(model, reference, batch, temperature):
    outputs = policy_outputs(model, batch, temperature=temperature, entropy="gradient", reference=reference)
    named = {"logprobs": 1.0, "entropies": 0.3, "exact_kl": 0.2}
    weights = torch.linspace(-1, 1, batch.response_mask.numel(), dtype=torch.float64).view(batch.response_mask.shape)
    loss = sum((getattr(outputs, name) * weights * factor).sum() for name, factor in named.items())
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return [getattr(outputs, name).detach() for name in named], gradients


@pytest.mark.parametrize("chunk", [2**24, 3 * tiny.VOCABULARY], ids=["one chunk", "chunks of 3 tokens"])
@pytest.mark.parametrize("rows", [grouped(), tiny.examples()], ids=["shared", "separate"])
@pytest.mark.parametrize("name", [*tiny.FAMILIES, *CONFIGS])
def test_the_fast_path_equals_the_plain_path(name, rows, chunk, monkeypatch):
    """Log-probabilities, entropies, exact KL, and the gradient of all of them.

    RMSNorm and rotary positions of some models compute in float32 whatever the weights are, hence 1e-6.
    """
    monkeypatch.setattr(head, "CHUNK", chunk)
    model, reference, batch = model_of(name, 0), model_of(name, 1), collate(rows, PAD)
    assert has_layouts(model)
    fast, fast_gradients = numbers_and_gradients(model, reference, batch, 0.7)
    with without_layouts(model), without_layouts(reference):
        assert not has_layouts(model)
        plain, plain_gradients = numbers_and_gradients(model, reference, batch, 0.7)
    for one, other in zip(fast, plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)
    size = torch.cat([gradient.flatten() for gradient in plain_gradients]).norm()
    for one, other in zip(fast_gradients, plain_gradients, strict=True):
        assert (one - other).norm() <= 1e-6 * size


@pytest.mark.parametrize("rows", [grouped(), tiny.examples()], ids=["shared", "separate"])
def test_values_and_scores_of_the_fast_path(rows, tokenizer, tmp_path):
    """A value before each response token, and a score at the last token; also of an ensemble."""
    save_policy(tiny.rotary(), tokenizer, tmp_path / "policy", max_new_tokens=4)
    members = [new_scalar_model(tmp_path / "policy").double() for _ in range(2)]
    members[0].set_normalisation(0.5, 2.0)
    for model in (members[0], ScalarEnsemble(members, "min", 0.0)):
        assert model.has_layouts
        batch = collate(rows, PAD)
        fast = [values(model, batch), scores(model, batch)]
        with without_layouts(model):
            assert not model.has_layouts
            plain = [values(model, batch), scores(model, batch)]
        for one, other in zip(fast, plain, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


@pytest.mark.parametrize("rows", [grouped(), tiny.examples(9)], ids=["shared", "separate"])
def test_no_row_sees_another(rows):
    """Changing a response token, or a row's prompt, changes nothing in other rows."""
    model, batch = tiny.rotary().double(), collate(rows, PAD)
    before = policy_outputs(model, batch).logprobs
    for row, example in enumerate(rows):
        for changed in (
            Example(example.prompt_ids, [11 if example.response_ids[0] != 11 else 10, *example.response_ids[1:]]),
            Example([*example.prompt_ids[:-1], 11 if example.prompt_ids[-1] != 11 else 10], example.response_ids),
        ):
            after = policy_outputs(model, collate([*rows[:row], changed, *rows[row + 1 :]], PAD)).logprobs
            others = [index for index in range(len(rows)) if index != row]
            torch.testing.assert_close(after[others], before[others], atol=1e-12, rtol=0)
            assert (after[row] != before[row]).any()


def test_full_logits_are_never_held(monkeypatch):
    """With room for 3 tokens, every chunk of logits has at most 3 rows, forward and backward."""
    monkeypatch.setattr(head, "CHUNK", 3 * tiny.VOCABULARY)
    sizes, logits = [], head._logits
    monkeypatch.setattr(head, "_logits", lambda states, *others: sizes.append(len(states)) or logits(states, *others))
    model, batch = tiny.rotary(), collate(tiny.examples(), PAD)
    outputs = policy_outputs(model, batch)
    count = int(batch.response_mask.sum())
    assert sum(sizes) == count
    outputs.logprobs.sum().backward()
    assert sum(sizes) == 2 * count
    assert max(sizes) == 3


def test_the_head_by_hand():
    """Logits 0 and ln 3 at temperature 1: π = ¼, ¾; log ¾ = -0.28768, H = 0.56234.

    The gradient with respect to the logits is (-¼, ¼) for log π(1), and -π_j (log π_j + H) = (0.20599, -0.20599) for H.
    """
    states = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [torch.log(torch.tensor(3.0))]], requires_grad=True)
    logprobs, entropies = head._Logprobs.apply(states, weight, torch.tensor([1]), 1.0, "gradient")
    assert logprobs.item() == pytest.approx(-0.287682, abs=1e-6)
    assert entropies.item() == pytest.approx(0.562335, abs=1e-6)
    (slope,) = torch.autograd.grad(logprobs.sum(), weight, retain_graph=True)
    torch.testing.assert_close(slope, torch.tensor([[-0.25], [0.25]]))
    (slope,) = torch.autograd.grad(entropies.sum(), weight)
    torch.testing.assert_close(slope, torch.tensor([[0.205991], [-0.205991]]), atol=1e-5, rtol=0)


def test_an_entropy_that_is_only_logged_has_no_graph():
    outputs = policy_outputs(tiny.rotary(), collate(tiny.examples(), PAD), entropy="value")
    assert not outputs.entropies.requires_grad
    assert (outputs.entropies[:, 0] > 0).all()


def test_a_prepared_model_is_saved_and_generates_as_before(tmp_path, tokenizer):
    model = tiny.rotary()
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("sdpa")
    assert model.config.to_json_string() == plain.config.to_json_string()
    ids, mask = torch.tensor([[PAD, 6, 7], [8, 9, 10]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    found = [one.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False) for one in (model, plain)]
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (BloomConfig(vocab_size=12, hidden_size=16, n_layer=1, n_head=2), "its model_type bloom is not one of gpt2,"),
        (MistralConfig(**SHAPE, sliding_window=4), "it has sliding-window attention"),
    ],
)
def test_other_models_take_the_plain_path(config, reason):
    model = new_policy(config)
    assert use_layouts(model).startswith(reason)
    assert not has_layouts(model)
    assert policy_outputs(model, collate(SEPARATE, PAD)).logprobs.shape == (2, 2)


def test_scalar_models_of_other_architectures_take_the_plain_path(tmp_path, tokenizer):
    model = tiny.rotary()
    model.set_attn_implementation("eager")
    save_policy(model, tokenizer, tmp_path / "policy", max_new_tokens=4)
    scalar = new_scalar_model(tmp_path / "policy")
    scalar.model.set_attn_implementation("eager")
    assert isinstance(scalar, ScalarModel)
    assert not scalar.has_layouts
    assert scores(scalar, collate(SHARED, PAD)).shape == (3,)
