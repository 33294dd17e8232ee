"""The checks before a stage trains: each passes for a correct model and names the fault of a broken one."""

import math

import pytest
import torch
from torch import nn

import tiny
from rlhf_core.common.batch import Example, collate
from rlhf_core.common.errors import UserError
from rlhf_core.loops.common import preflight
from rlhf_core.models.sampling import LocalSampler
from rlhf_core.models.store import ScalarModel, new_scalar_model, save_policy
from tasks.common.preflight import row_checks, run_checks

EXACT = preflight.TOLERANCE["fp32"]


def refused(check, *arguments):
    """The message of a check that fails, on one line."""
    with pytest.raises(UserError) as error:
        check(*arguments)
    return " ".join(str(error.value).split())


@pytest.fixture
def reward_model(tmp_path, tokenizer) -> ScalarModel:
    save_policy(tiny.rotary(), tokenizer, tmp_path / "policy", max_new_tokens=4)
    torch.manual_seed(0)
    model = new_scalar_model(tmp_path / "policy").eval()
    nn.init.normal_(model.model.score.weight)
    return model


@pytest.mark.pitfall(1)
def test_padding(family):
    preflight.check_padding(family(), tiny.examples(), tiny.PAD, EXACT)


@pytest.mark.pitfall(1)
def test_padding_of_a_model_that_ignores_the_mask():
    """Rows are padded on the left. Without mask and positions the model reads the pads; the shortest row shows it."""
    policy = tiny.learned()
    forward = policy.forward

    def without_mask(input_ids, attention_mask, position_ids, **others):
        return forward(input_ids=input_ids, **others)

    policy.forward = without_mask
    rows = [Example([6], [7, tiny.END]), Example([6, 8, 9, 10], [7, tiny.END])]
    message = refused(preflight.check_padding, policy, rows, tiny.PAD, EXACT)
    assert message.startswith("row 0: a log-probability differs by ")
    assert message.endswith("The model ignores the attention mask or position ids. Use another model.")


@pytest.mark.pitfall(5)
def test_masks():
    preflight.check_masks(tiny.examples())
    for row, found in (
        (Example([6, 6], []), "2 prompt tokens and 0 response tokens"),
        (Example([], [7]), "0 prompt tokens and 1 response tokens"),
    ):
        message = refused(preflight.check_masks, [Example([6], [7]), row])
        assert message == f"row 1 has {found}. Drop it from the data."


@pytest.mark.pitfall(4)
@pytest.mark.parametrize("ids", [[6, 7], [tiny.BEGIN, 6, 7]])
def test_none_or_one_beginning_token_at_the_start(ids):
    preflight.check_beginning([ids], tiny.BEGIN, tiny.END)


@pytest.mark.pitfall(4)
@pytest.mark.parametrize("ids", [[tiny.BEGIN, tiny.BEGIN, 6], [6, tiny.BEGIN]])
def test_two_beginning_tokens_or_one_inside(ids):
    message = refused(preflight.check_beginning, [[6, 7], ids], tiny.BEGIN, tiny.END)
    assert message.startswith("row 1 has ")
    assert message.endswith("Remove bos_token from the tokenizer's chat template.")


@pytest.mark.pitfall(4)
def test_a_beginning_token_may_open_every_turn_but_not_twice():
    """As in ChatML, whose <|im_start|> is the beginning token of SmolLM2."""
    preflight.check_beginning([[tiny.BEGIN, 6, tiny.BEGIN, 7]], tiny.BEGIN, tiny.END, begins_turns=True)
    for ids in ([tiny.BEGIN, 6, tiny.BEGIN, tiny.BEGIN, 7], [tiny.BEGIN, tiny.BEGIN, 6], [6, tiny.BEGIN, 7]):
        with pytest.raises(UserError, match=r"^row 0 has "):
            preflight.check_beginning([ids], tiny.BEGIN, tiny.END, begins_turns=True)


@pytest.mark.pitfall(4)
def test_a_beginning_token_that_is_the_end_token_or_none_is_not_counted():
    """Some tokenizers use the same token for both, which then ends every turn."""
    preflight.check_beginning([[6, tiny.END, 6, tiny.END]], tiny.END, tiny.END)
    preflight.check_beginning([[6, tiny.END, 6, tiny.END]], None, tiny.END)


@pytest.mark.pitfall(4)
def test_a_sampled_response_may_contain_a_beginning_token(tokenizer):
    tokenizer.bos_token = "<begin>"
    row = Example([tiny.BEGIN, 6], [tiny.BEGIN, tiny.END])
    run_checks("reward", row_checks([row], tokenizer, is_sampled=True))
    assert "row 0 has 2 beginning tokens" in refused(run_checks, "sft", row_checks([row], tokenizer, is_sampled=False))


@pytest.mark.pitfall(3)
def test_end_token():
    rows = [Example([6], [7, tiny.END]), Example([6], [7, tiny.STOP])]
    preflight.check_end(rows, (tiny.END, tiny.STOP), tiny.PAD)
    assert refused(preflight.check_end, rows, (tiny.END,), tiny.PAD).startswith(
        f"row 1: the response ends with token {tiny.STOP}, not with an end token ({tiny.END})."
    )


@pytest.mark.pitfall(3)
def test_pad_token_that_is_the_only_end_token():
    rows = [Example([6], [7, tiny.END])]
    preflight.check_end(rows, (tiny.END, tiny.STOP), tiny.END)
    assert refused(preflight.check_end, rows, (tiny.END,), tiny.END) == (
        f"the pad token and the only end token have the same id {tiny.END}. Set a separate pad token in the tokenizer."
    )


def sampled(policy):
    prompts = [example.prompt_ids for example in tiny.examples()]
    responses = LocalSampler(4, (tiny.END,), tiny.PAD).token_ids(policy, prompts, range(len(prompts)))
    return tiny.responses_of(prompts, responses).batch


@pytest.mark.pitfall(9)
def test_ratio_before_the_first_update(family):
    policy = family()
    preflight.check_ratio(policy, sampled(policy), 0.7, EXACT)


@pytest.mark.pitfall(9)
@pytest.mark.pitfall(10)
def test_ratio_of_a_policy_with_dropout():
    policy = tiny.rotary()
    batch = sampled(policy)
    policy.lm_head = nn.Sequential(nn.Dropout(0.5), policy.lm_head)
    assert refused(preflight.check_ratio, policy, batch, 1.0, EXACT).endswith("Set every dropout in config.json to 0.")


def test_reference():
    rows = tiny.examples()
    preflight.check_reference(tiny.rotary(), tiny.rotary(), rows, tiny.PAD, EXACT)
    message = refused(preflight.check_reference, tiny.rotary(), tiny.rotary(seed=1), rows, tiny.PAD, EXACT)
    assert message.startswith("policy and reference differ by ")


@pytest.mark.pitfall(7)
@pytest.mark.pitfall(27)
def test_scores(reward_model):
    preflight.check_scores(reward_model, tiny.examples(), tiny.PAD, EXACT)


@pytest.mark.pitfall(7)
@pytest.mark.pitfall(27)
def test_scores_of_a_model_that_reads_pads(reward_model):
    forward = reward_model.forward
    reward_model.forward = lambda ids, mask, positions: forward(ids, torch.ones_like(mask), positions)
    message = refused(preflight.check_scores, reward_model, tiny.examples(), tiny.PAD, EXACT)
    assert message.endswith("The model reads a pad token or ignores the attention mask. Use another model.")


def test_nan_is_never_within_the_tolerance(reward_model):
    nn.init.constant_(reward_model.model.score.weight, math.nan)
    rows = tiny.examples()
    assert "nan" in refused(preflight.check_scores, reward_model, rows, tiny.PAD, EXACT)
    policy = tiny.rotary()
    batch = sampled(policy)
    nn.init.constant_(policy.lm_head.weight, math.nan)
    assert "nan" in refused(preflight.check_padding, policy, rows, tiny.PAD, EXACT)
    assert "nan" in refused(preflight.check_ratio, policy, batch, 1.0, EXACT)
    assert "nan" in refused(preflight.check_reference, policy, tiny.rotary(), rows, tiny.PAD, EXACT)


@pytest.mark.pitfall(24)
def test_learning_rate():
    """In float32 a step of 1e-6 changes weights of size 0.3, but 1e-10 is lost to rounding. In bf16 1e-6 is too."""
    preflight.check_learning_rate(tiny.rotary(), 1e-6)
    message = refused(preflight.check_learning_rate, tiny.rotary(), 1e-10)
    assert message.startswith("a step of learning_rate 1e-10 leaves ")
    assert "torch.bfloat16" in refused(preflight.check_learning_rate, tiny.rotary().to(torch.bfloat16), 1e-6)


def test_a_failure_names_stage_and_check(capsys):
    def fail():
        raise UserError("row 2 is odd. Drop it.")

    message = refused(run_checks, "sft", [("fine", lambda: None), ("masks", fail)])
    assert message == "preflight of sft, masks: row 2 is odd. Drop it."
    assert capsys.readouterr().err == ""
    run_checks("sft", [("fine", lambda: None)] * 2)
    assert capsys.readouterr().err == "sft          preflight: 2 checks passed\n"
    run_checks("best_of_n", [])
    assert capsys.readouterr().err == ""


def test_checks_do_not_change_the_random_stream_of_the_stage():
    def drawing():
        yield "before the check", lambda: torch.rand(3)

    torch.manual_seed(5)
    before = torch.get_rng_state()
    run_checks("base", drawing())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_batch_of_a_row_alone_has_no_padding():
    """The checks compare with this batch."""
    row = tiny.examples()[0]
    assert collate([row], tiny.PAD).attention_mask.all()
