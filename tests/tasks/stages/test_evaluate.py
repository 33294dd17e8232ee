"""Stage evaluate and best-of-N sampling on policies whose next-token distribution is set by hand.

A policy here is a table: logits of the next token given the last one. `a` is the right answer to every test prompt,
`b` to every development prompt. Each policy answers one word and ends, except base and grpo.
"""

import json
import math
from itertools import product
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

import tiny
from checkout import make_checkout, write_params
from rlhf_core.common.batch import Example, collate
from rlhf_core.loops.online import OnlineTraining
from rlhf_core.models.ensembles import load_reward_model
from rlhf_core.models.forward import response_kl, response_logprobs, scores
from rlhf_core.models.sampling import LocalSampler
from rlhf_core.models.store import new_scalar_model, own_temperature, save_policy, save_scalar_model
from rlhf_core.models.tokens import Prompt
from rlhf_core.scoring.rewards import WeightedSum
from rlhf_core.scoring.terms.python import PythonReward
from tasks.common.sampling import sample_responses
from tasks.files.jsonl import read_jsonl, write_jsonl
from tasks.params.load import load_params, merged
from tasks.problems.questions import Questions
from tasks.rewards.best_of_n import BEST_OF_N, best_of_n
from tasks.stages import evaluate as stage
from tasks.stages.online import online
from tiny import ASSISTANT, END, PAD, WORDS

A, B, C = (WORDS.index(word) for word in "abc")
TESTS, DEVELOPMENT, LONGEST = 16, 6, 4
NEVER = -200.0
SFT = {ASSISTANT: {A: 0.0, B: 1.0}, B: {END: 1.0, C: 0.0}}
PPO = {ASSISTANT: {A: 2.0, B: 0.0}, B: {END: 0.0, C: -3.0}}
ENDLESS = {ASSISTANT: {A: 1.0, B: 0.0}, A: {A: 0.0}}
BASE = {ASSISTANT: {A: 0.0}}
OWN = 0.5  # PPO's temperature


def bigram(table):
    """A Llama that sees only the last token. A token without an entry is followed by the end token.

    One-hot embeddings of length 1000 go through the layers unchanged, and the last norm makes them 4 (of 16 columns).
    """
    model = tiny.rotary()
    logits = torch.full((tiny.VOCABULARY, tiny.VOCABULARY), NEVER)
    for last in range(tiny.VOCABULARY):
        for token, logit in table.get(last, {END: 0.0}).items():
            logits[token, last] = logit
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(1000 * torch.eye(tiny.VOCABULARY, 16))
        model.lm_head.weight.zero_()
        model.lm_head.weight[:, : tiny.VOCABULARY] = logits / 4
    return model


def divergence(table, other, last, temperature):
    """KL of the next token after `last` between two tables at a temperature, by hand."""
    tables = [torch.tensor(list(of[last].values())).double() / temperature for of in (table, other)]
    log_p, log_q = (logits.log_softmax(0) for logits in tables)
    return (log_p.exp() * (log_p - log_q)).sum().item()


def probability(table, last, token, temperature=1.0):
    weights = {key: math.exp(logit / temperature) for key, logit in table[last].items()}
    return weights[token] / sum(weights.values())


# --- the stage ---


@pytest.fixture(scope="module")
def checkout(module_patch, tmp_path_factory):
    """A checkout with prepared data and every model that the stage needs, written by hand."""
    changes = {
        "prepare": {"answer_pattern": "(.+)$", "max_response_tokens": LONGEST},
        "evaluate": {"prompts": TESTS, "development_prompts": DEVELOPMENT, "samples": TESTS},
    }
    folder = make_checkout(tmp_path_factory.mktemp("judged"), changes)
    module_patch.chdir(folder)
    make_inputs()
    return folder


def make_inputs():
    tokenizer = tiny.tiny_tokenizer()
    for split, count, answer in (("train", 16, "a"), ("test", TESTS + 4, "a"), ("development", DEVELOPMENT + 2, "b")):
        words = ["d", "e d", "f e d"]
        rows = [
            {"prompt": [{"role": "user", "content": words[row % 3]}], "answer": answer, "response": answer}
            for row in range(count)
        ]
        if split == "test":  # one reference is longer than the others, so the two sides have different widths
            rows[TESTS - 1]["response"] = "a a a"
        Path("data/prepared").mkdir(parents=True, exist_ok=True)
        write_jsonl(Path(f"data/prepared/prompts_{split}.jsonl"), rows)
    write(Path("data/prepared/card.json"), {"kind": "question_answer"})
    write(Path("data/feedback/summary.json"), {})
    write(Path("models/reward/none.json"), {"why": "answers"})
    write(Path("models/judge/none.json"), {"why": "answers"})
    for path, table in (("base", BASE), ("sft", SFT), ("policies/dpo", PPO), ("policies/grpo", ENDLESS)):
        save_policy(bigram(table), tokenizer, Path("models", path), max_new_tokens=LONGEST)
    for path in (Path("models/policies/ppo"), Path("models/policies/ppo/snapshots/step-000002")):
        save_policy(bigram(PPO), tokenizer, path, max_new_tokens=LONGEST, temperature=OWN)
    Path("models/rewards").mkdir()
    write(Path("models/policies/best_of_n", BEST_OF_N), {"policy": "models/sft", "best_of": 64, "kl_bound": 3.25})


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def judged(folder, **changes):
    """Results, snapshots and samples of the stage under changed parameters."""
    unchanged = yaml.safe_load((folder / "params.yaml").read_text())
    methods = {"policy": {"online": ["ppo", "grpo", "best_of_n"], "offline": ["dpo"]}}
    write_params(folder, merged(unchanged, methods, changes))
    try:
        stage.evaluate()
    finally:
        write_params(folder, unchanged)
    results = json.loads(Path("evaluation/results.json").read_text())
    return results, *(read_jsonl(Path(f"evaluation/{name}.jsonl")) for name in ("snapshots", "samples"))


REWARDS = [
    {"name": "exact_answer", "weight": 2.0},
    {"name": "missing_end", "weight": 3.0},
    {"name": "length", "weight": -0.1},
]


@pytest.fixture(scope="module")
def greedy(checkout):
    """Evaluated at temperature 0: SFT answers b, every policy answers a."""
    return judged(checkout, policy={"rewards": REWARDS}, evaluate={"temperature": 0.0})


@pytest.fixture(scope="module")
def own(checkout):
    """Evaluated at each policy's own temperature."""
    return judged(checkout, policy={"rewards": REWARDS})


def test_win_rates_are_the_policies_on_the_test_split_against_the_sft_model(greedy):
    """PPO answers a, SFT b. On the 16 test prompts PPO is right; on the 6 development prompts SFT is.

    One of 16 references is wrong: PPO ties 15 and wins 1, SFT loses 15 and ties 1.
    """
    results, snapshots, _ = greedy
    assert (results["judge"], results["prompts"]) == ("exact match", TESTS)
    sure = {"low": 1.0, "value": 1.0, "high": 1.0, "n": TESTS, "judge": "exact match"}
    for name in ("ppo", "dpo"):
        assert results["policies"][name]["win_rate_vs_sft"] == sure
        assert results["policies"][name]["win_rate_vs_reference"]["value"] == 8.5 / 16
        assert results["policies"][name]["judge_score"]["value"] == 1.0
    assert results["sft"]["win_rate_vs_reference"]["value"] == 0.5 / 16
    assert results["sft"]["judge_score"]["value"] == 0.0
    assert [(row["policy"], row["step"], row["judge_score"]["value"]) for row in snapshots] == [
        ("sft", 0, 1.0),
        ("ppo", 2, 0.0),
    ]
    assert snapshots[1]["win_rate_vs_sft"] == sure | {"low": 0.0, "value": 0.0, "high": 0.0, "n": DEVELOPMENT}


class LongerWins:
    """A judge that compares two responses and gives no scores."""

    name = "length of the text"

    def prefer(self, first, second):
        lengths = [[len(text) for text in side.texts] for side in (first, second)]
        return [0.5 if one == two else float(one > two) for one, two in zip(*lengths, strict=True)]


def test_a_judge_that_only_compares_gives_win_rates_and_no_scores(checkout, monkeypatch):
    """GRPO answers a a a a, longer than the SFT model's b; PPO answers a, which is as long."""
    monkeypatch.setattr(Questions, "judge", lambda self, prepare: LongerWins())
    results, snapshots, _ = judged(
        checkout, policy={"online": ["ppo", "grpo"], "offline": []}, evaluate={"temperature": 0.0}
    )
    assert results["judge"] == "length of the text"
    rates = {name: figures["win_rate_vs_sft"]["value"] for name, figures in results["policies"].items()}
    assert rates == {"ppo": 0.5, "grpo": 1.0}
    assert [figures["judge_score"] for figures in (results["sft"], *results["policies"].values())] == [None] * 3
    assert [row["judge_score"] for row in snapshots] == [None, None]


def test_samples_are_the_judged_ones(greedy):
    _, _, samples = greedy
    assert len(samples) == TESTS
    assert samples.pop()["responses"]["reference"] == "a a a"
    assert samples[1]["prompt"] == [{"role": "user", "content": "e d"}]
    said = {"reference": "a", "sft": "b", "ppo": "a", "dpo": "a", "grpo": "a a a a", "best_of_n": "b"}
    assert all(row["responses"] == said for row in samples)


@pytest.mark.pitfall(33)
def test_kl_is_measured_at_the_policys_own_temperature(greedy, own):
    """KL per response is that of the first token, plus that after b for responses that begin with b.

    At temperature 0 no judged response begins with b, so the share comes from a second sample: k of 16 prompts.
    """
    for (results, *_), judged_at in ((greedy, 0.0), (own, OWN)):
        figures = results["policies"]["ppo"]
        assert (figures["temperature"], figures["kl_temperature"], figures["kl_is_bound"]) == (judged_at, OWN, False)
        first, after_b = (divergence(PPO, SFT, last, OWN) for last in (ASSISTANT, B))
        count = (figures["kl"]["value"] - first) / after_b * TESTS
        assert count == pytest.approx(round(count), abs=1e-3)
        assert 0 <= round(count) < TESTS / 2  # 0.3 are expected: the first token is b with 1.8 %
        figures = results["policies"]["dpo"]
        assert (figures["temperature"], figures["kl_temperature"]) == (0.0 if judged_at == 0 else 1.0, 1.0)
        first, after_b = (divergence(PPO, SFT, last, 1.0) for last in (ASSISTANT, B))
        count = (figures["kl"]["value"] - first) / after_b * TESTS
        assert count == pytest.approx(round(count), abs=1e-3)
        assert 1 <= round(count) < TESTS  # 1.9 are expected
        assert results["sft"]["kl"] == {"value": 0.0, "low": 0.0, "high": 0.0}


@pytest.mark.pitfall(33)
def test_judged_responses_are_sampled_at_each_policys_own_temperature(own):
    """PPO at 0.5 begins with a in 98.2 % of samples; DPO, with the same weights at 1, in 88 %; SFT at 1 in 27 %."""
    results, snapshots, samples = own
    said = {name: [row["responses"][name] for row in samples] for name in samples[0]["responses"]}
    right = {name: texts.count("a") / TESTS for name, texts in said.items()}
    assert 0 < right["sft"] < right["dpo"] < right["ppo"] == 1.0
    for name in ("ppo", "dpo"):
        assert results["policies"][name]["judge_score"]["value"] == right[name]
    assert results["sft"]["temperature"] == results["sft"]["kl_temperature"] == 1.0
    assert [row["temperature"] for row in snapshots] == [1.0, OWN]


@pytest.mark.parametrize("truncation", [{"top_k": 1}, {"top_p": 0.4}])
def test_truncation_changes_the_judged_responses_and_not_the_kl(checkout, own, truncation):
    """With the most likely token alone the answers are those of temperature 0; at 1, SFT's b has 73 % and DPO's a 88 %.

    DPO's KL is that of whole distributions, from a second sample: that of the first token, plus that after b.
    """
    results, _, samples = judged(checkout, policy={"online": ["grpo"]}, evaluate=truncation)
    assert {(row["responses"]["sft"], row["responses"]["dpo"]) for row in samples} == {("b", "a")}
    figures = results["policies"]["dpo"]
    assert (figures["temperature"], figures["kl_temperature"]) == (1.0, 1.0)
    first, after_b = (divergence(PPO, SFT, last, 1.0) for last in (ASSISTANT, B))
    count = (figures["kl"]["value"] - first) / after_b * TESTS
    assert count == pytest.approx(round(count), abs=1e-3)
    assert 1 <= round(count) < TESTS
    assert results["sft"]["kl"]["value"] == 0.0


def test_judges_read_responses_up_to_a_stop_string(checkout):
    """GRPO says a a a a, so that "a a" ends it at once, before any word; it then counts as ended."""
    rewards = {"rewards": [{"name": "length", "weight": 1.0}, {"name": "missing_end"}]}
    results, _, samples = judged(
        checkout,
        policy={"online": ["grpo"], **rewards},
        evaluate={"stop_strings": ["a a"], "temperature": 0.0},
    )
    assert {(row["responses"]["grpo"], row["responses"]["dpo"]) for row in samples} == {("", "a")}
    assert results["policies"]["grpo"]["reward_terms"] == {"length": 1.0, "missing_end": 0.0}  # the end token


def test_best_of_n_answers_the_best_and_reports_its_bound(own, greedy):
    """The chance that none of 64 samples begins with a is 1.9e-9. Choosing the worst would almost never be right.

    At temperature 0 all samples are equal, so the best is the SFT model's answer.
    """
    for (results, *_), score, temperature in ((own, 1.0, 1.0), (greedy, 0.0, 0.0)):
        figures = results["policies"]["best_of_n"]
        assert figures["kl"] == {"value": 3.25, "low": 3.25, "high": 3.25}
        assert (figures["kl_is_bound"], figures["temperature"]) == (True, temperature)
        assert figures["judge_score"]["value"] == score


def test_reward_is_the_sum_that_was_optimised_and_its_terms_are_shown(greedy):
    """a and its end: 2 · 1 - 0.1 · 2 tokens = 1.8. a a a a, cut off: wrong, 3 · (-1) - 0.1 · 4 tokens = -3.4."""
    results, _, _ = greedy
    policies = results["policies"]
    weights = {"exact_answer": 2.0, "missing_end": 3.0, "length": -0.1}
    assert {term["name"]: (term["weight"], term["clamp"]) for term in results["rewards"]} == {
        name: (weight, None) for name, weight in weights.items()
    }
    assert results["rewards"][0]["meaning"] == "1 for a correct answer, otherwise 0"
    assert policies["ppo"]["reward"] == pytest.approx({"value": 1.8, "low": 1.8, "high": 1.8})
    assert policies["ppo"]["reward_terms"] == {"exact_answer": 1.0, "missing_end": 0.0, "length": 2.0}
    assert policies["grpo"]["reward"]["value"] == pytest.approx(-3.4)
    assert policies["grpo"]["reward_terms"]["missing_end"] == -1.0
    assert policies["grpo"]["ended_fraction"] == 0.0
    assert policies["ppo"]["reward_model_score"] is None
    assert {name: figures["reward_optimised"] for name, figures in policies.items()} == {
        "ppo": True,
        "dpo": False,
        "grpo": True,
        "best_of_n": True,
    }


def test_with_a_reward_model_its_clamp_applies_and_its_own_score_is_reported(checkout, with_models):
    """PPO answers a, GRPO a a a a. The scores of these texts are computed here; the clamp applies to some of them."""
    clamp, bound = 2.0, 0
    rewards = [{"name": "model", "weight": 2.0, "clamp": clamp}, {"name": "missing_end", "weight": 3.0}]
    results, _, _ = judged(
        checkout,
        policy={"online": ["ppo", "grpo"], "offline": [], "rewards": rewards},
        evaluate={"temperature": 0.0},
    )
    assert results["judge"] == "second reward model"
    assert [term["clamp"] for term in results["rewards"]] == [clamp, None]
    for name, words, end in (("ppo", "a", 0.0), ("grpo", "a a a a", -1.0)):
        raw = expected_scores("models/reward", words, ended=end == 0.0)
        clamped = raw.clamp(-clamp, clamp)
        bound += (raw != clamped).sum().item()
        figures = results["policies"][name]
        assert figures["reward_model_score"]["value"] == pytest.approx(raw.mean().item(), abs=1e-5)
        assert figures["reward"]["value"] == pytest.approx(2 * clamped.mean().item() + 3 * end, abs=1e-5)
        assert figures["reward_terms"] == {
            "model": pytest.approx(clamped.mean().item(), abs=1e-5),
            "missing_end": end,
        }
        judge_score = expected_scores("models/judge", words, ended=end == 0.0).mean().item()
        assert figures["judge_score"]["value"] == pytest.approx(judge_score, abs=1e-5)
    assert 0 < bound < 2 * TESTS


@pytest.mark.pitfall(32)
def test_equal_answers_are_ties_to_a_reward_model(checkout, with_models):
    """At temperature 0 PPO answers a to every prompt, like 15 of 16 references; only the longer one is not a tie."""
    results, _, _ = judged(checkout, policy={"online": ["ppo"], "offline": []}, evaluate={"temperature": 0.0})
    rate = results["policies"]["ppo"]["win_rate_vs_reference"]
    assert rate["value"] * TESTS in (7.5, 8.5)


@pytest.mark.pitfall(32)
def test_identical_ids_tie_and_the_other_order_gives_the_mirrored_verdict(checkout, with_models):
    """59 identical pairs of 1 to 9 tokens and one pair of different lengths; then 60 pairs that all differ."""
    judge = stage.Evaluation(load_params()).judge
    assert (judge.name, judge.tolerance) == ("second reward model", 1e-4)
    rows = tiny.examples(120, seed=3, longest=9)
    prompts, ids = [row.prompt_ids for row in rows[:60]], [row.response_ids for row in rows]
    first = tiny.responses_of(prompts, ids[:60])
    second = tiny.responses_of(prompts, [*ids[:59], [A] * 12 + [END]])
    for sides in ((first, second), (second, first)):
        verdicts = judge.prefer(*sides)
        assert verdicts[:59] == [0.5] * 59
        assert verdicts[59] in (0.0, 1.0)
    others = tiny.responses_of(prompts, ids[60:])
    forwards, backwards = judge.prefer(first, others), judge.prefer(others, first)
    assert {0.0, 1.0} <= set(forwards)
    assert backwards == [1 - verdict for verdict in forwards]


@pytest.fixture
def with_models(checkout, monkeypatch):
    """Preference data, with a random reward model and a random judge."""
    card = Path("data/prepared/card.json")
    write(card, {"kind": "preference"})
    tokenizer = tiny.tiny_tokenizer()
    nothing = {}
    for number, name in enumerate(("reward", "judge")):
        folder = Path("models", name)
        nothing[folder] = (folder / "none.json").read_text()
        (folder / "none.json").unlink()
        save_policy(tiny.rotary(number), tokenizer, folder / "start", max_new_tokens=LONGEST)
        torch.manual_seed(number)
        model = new_scalar_model(folder / "start")
        model.set_normalisation(0.0, 0.02)
        save_scalar_model(model, tokenizer, folder)
    yield
    write(card, {"kind": "question_answer"})
    for folder, text in nothing.items():
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (folder / "none.json").write_text(text)


def expected_scores(path, words, *, ended):
    """Scores of `words` as the answer to each test prompt, one row at a time."""
    model = load_reward_model(path).eval()
    response = [WORDS.index(word) for word in words.split()] + [END] * ended
    found = []
    for row in read_jsonl(Path("data/prepared/prompts_test.jsonl"))[:TESTS]:
        content = [WORDS.index(word) for word in row["prompt"][0]["content"].split()]
        with torch.no_grad():
            found.append(scores(model, collate([Example([tiny.USER, *content, ASSISTANT], response)], PAD)))
    return torch.cat(found)


@pytest.mark.pitfall(21)
def test_the_policy_stages_critic_is_the_reward_model_with_its_centring(checkout, with_models, monkeypatch):
    """Every weight, offset 0.25 and scale 0.5 are equal; models/sft has different weights."""
    reward = load_reward_model("models/reward")
    reward.set_normalisation(0.25, 0.5)
    save_scalar_model(reward, tiny.tiny_tokenizer(), Path("models/reward"))
    built = []

    def stop(training):
        built.append(training)
        raise KeyboardInterrupt

    monkeypatch.setattr(OnlineTraining, "train", stop)
    unchanged = yaml.safe_load((checkout / "params.yaml").read_text())
    changes = {"policy": {"online": ["ppo"], "offline": [], "rewards": [{"name": "length", "weight": -0.1}]}}
    write_params(checkout, merged(unchanged, changes))
    try:
        with pytest.raises(KeyboardInterrupt):
            online("ppo")
    finally:
        write_params(checkout, unchanged)
    critic = built[0].critic
    assert (critic.offset, critic.scale) == (0.25, 0.5)
    expected = reward.state_dict()
    assert critic.state_dict().keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in critic.state_dict().items())


@pytest.mark.pitfall(33)
def test_the_policy_stage_writes_its_training_temperature_where_evaluate_reads_it(checkout):
    """GRPO trained at 0.7, so the generation configs of the policy and its snapshot have 0.7."""
    unchanged = yaml.safe_load((checkout / "params.yaml").read_text())
    settings = {"temperature": 0.7, "steps": 1, "rollout_size": 8, "minibatch_size": 8, "group_size": 4, "snapshots": 1}
    changes = {"online": ["grpo"], "offline": [], "rewards": REWARDS, "grpo": settings}
    write_params(checkout, merged(unchanged, {"policy": changes}))
    try:
        online("grpo")
    finally:
        write_params(checkout, unchanged)
    folder = Path("models/policies/grpo")
    for path in (folder, *folder.glob("snapshots/step-*")):
        assert own_temperature(AutoModelForCausalLM.from_pretrained(path)) == 0.7
    assert own_temperature(AutoModelForCausalLM.from_pretrained("models/sft")) == 1.0


# --- best-of-N sampling ---


def test_best_of_n_keeps_the_first_of_the_best():
    """SFT answers a, b or b c. With one point per word, b c is best if it occurs, else the first sample."""
    sft, tokenizer = bigram(SFT), tiny.tiny_tokenizer()
    prompts = [Prompt([{"role": "user", "content": "d"}], [tiny.USER, WORDS.index("d"), ASSISTANT])] * 40
    sampler, stream, count = LocalSampler(LONGEST, (END,), PAD), (0, "test"), 4
    words = PythonReward("words", lambda prompts, responses, answers: [len(text.split()) for text in responses])
    kept, tokens = best_of_n(sft, tokenizer, prompts, sampler, WeightedSum([("words", 1.0, words)]), count, stream)
    sampled = sample_responses(sft, tokenizer, [prompt for prompt in prompts for _ in range(count)], sampler, stream)
    groups = [sampled[start : start + count] for start in range(0, len(sampled), count)]
    assert kept == [max(group, key=lambda response: len(response.ids)) for group in groups]  # max keeps the first
    assert {response.text for response in kept} == {"a", "b", "b c"}
    assert tokens == sum(len(response.ids) for response in sampled)


# --- KL ---


@pytest.mark.pitfall(33)
@pytest.mark.parametrize(("temperature", "nats"), [(1.0, 0.32781), (0.5, 0.60305)])
def test_kl_of_tempered_distributions_by_hand(temperature, nats):
    """Logits (0, 2) against (0, 0). At 1: (0.119, 0.881), log 2 - 0.3653; at 0.5: (0.018, 0.982), log 2 - 0.0901."""
    policy, reference = bigram({ASSISTANT: {A: 0.0, B: 2.0}}), bigram({ASSISTANT: {A: 0.0, B: 0.0}})
    batch = collate([Example([ASSISTANT], [A, END]), Example([ASSISTANT], [B, END])], PAD)
    kl = response_kl(policy, reference, batch, temperature=temperature)
    assert kl[:, 0].tolist() == pytest.approx([nats] * 2, abs=1e-5)
    assert kl[:, 1].tolist() == pytest.approx([0.0] * 2, abs=1e-6)


@pytest.mark.pitfall(33)
@pytest.mark.parametrize("temperature", [0.5, 1.7])
def test_kl_along_responses_is_that_of_whole_responses_at_the_same_temperature(temperature):
    """All responses of up to 2 tokens, enumerated: Σ π(y) Σ_t KL_t = Σ π(y) log π(y)/π_ref(y)."""
    policy, reference = tiny.rotary(1), tiny.rotary(2)
    responses = [[END]] + [[one, two] for one, two in product(range(tiny.VOCABULARY), repeat=2) if one != END]
    batch = collate([Example([A, B], response) for response in responses], PAD)
    log_p, log_q = (response_logprobs(m, batch, temperature=temperature).sum(-1).double() for m in (policy, reference))
    assert log_p.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    expected = (log_p.exp() * (log_p - log_q)).sum().item()
    estimate = response_kl(policy, reference, batch, temperature=temperature).sum(-1).double()
    assert (log_p.exp() * estimate).sum().item() == pytest.approx(expected, abs=1e-4)
    assert abs((log_q.exp() * (log_q - log_p)).sum().item() - expected) > 0.01
