"""Problems small enough to enumerate: a few tokens and an end token, short responses, a table of rewards.

The model is a real transformers model in float64: GPT-2, because Llama always computes its norms in float32. Prompts,
sampler, loops and losses are those that train real models.
"""

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import GPT2Config

import tiny
from rlhf_core.common.batch import Batch, Example, Unit, collate
from rlhf_core.common.responses import Response
from rlhf_core.models.forward import response_logprobs
from rlhf_core.models.store import new_policy
from rlhf_core.models.tokens import Prompt


@dataclass(frozen=True)
class Problem:
    """`words` tokens and an end token, responses of at most `longest` tokens, two prompts of one token each.

    Rewards are sampled once per prompt and response. A response that is cut off is a separate response.
    """

    words: int
    longest: int
    beta: float
    seed: int = 0
    prompts: int = 2

    @property
    def end(self) -> int:
        """The end token, the last of the vocabulary. Padding is token 0, which is masked."""
        return self.words

    def responses(self) -> list[list[int]]:
        """All responses, shorter ones first."""
        found = []
        for length in range(1, self.longest + 1):
            for start in itertools.product(range(self.words), repeat=length - 1):
                last = range(self.words + 1) if length == self.longest else [self.end]
                found += [[*start, token] for token in last]
        return found

    def sampled(self) -> list[Response]:
        """All responses in the form that a sampler returns. No test reads the texts."""
        return [Response(ids, "", ids[-1] == self.end) for ids in self.responses()]

    def prompt(self, number: int) -> Prompt:
        """The prompt that consists of token `number`."""
        return Prompt([{"role": "user", "content": str(number)}], [number])

    def all_prompts(self) -> list[Prompt]:
        """Both prompts."""
        return [self.prompt(number) for number in range(self.prompts)]

    def rewards(self) -> Tensor:
        """r(x, y), (prompts, responses)."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.rand(self.prompts, len(self.responses()), generator=generator, dtype=torch.float64) * 2 - 1

    def batch(self, number: int) -> Batch:
        """All responses to one prompt."""
        return collate([Example([number], response) for response in self.responses()], 0)

    def model(self, seed: int):
        """A small GPT-2 in float64 whose distribution is far from uniform."""
        config = GPT2Config(
            vocab_size=self.words + 1,
            n_embd=32,
            n_layer=2,
            n_head=2,
            n_positions=8,
            initializer_range=0.2,
            activation_function="gelu_pytorch_tanh",  # GPT-2's activation as one kernel
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=self.end,
            tie_word_embeddings=False,
        )
        torch.manual_seed(seed)
        return new_policy(config).double().eval()

    def reference(self):
        """π_ref, the initial policy of every training."""
        return self.model(1)

    def logprobs(self, policy) -> Tensor:
        """log π(y|x) of all responses, (prompts, responses)."""
        return torch.stack([response_logprobs(policy, self.batch(n)).sum(-1) for n in range(self.prompts)])

    def optimum(self) -> Tensor:
        """log π*(y|x) with π* ∝ π_ref exp(r/β), (prompts, responses)."""
        return (self.logprobs(self.reference()) + self.rewards() / self.beta).log_softmax(-1)


# Two tokens and an end token, up to three steps: 15 responses, 225 groups of two. Seed and β are chosen so that every
# wrong optimum, which a KL in the wrong place leads to, is at least 0.05 nats from π*; test_oracle.py checks this.
PROBLEM = Problem(words=2, longest=3, beta=0.4, seed=41)


def kl(first: Tensor, second: Tensor) -> float:
    """KL(first ‖ second) in nats per response, averaged over prompts; both are log-probabilities."""
    return (first.exp() * (first - second)).sum(-1).mean().item()


def table_reward(problem: Problem):
    """A Reward that looks up r(x, y) in the table by the sampled ids."""
    index = {tuple(response): number for number, response in enumerate(problem.responses())}
    rewards = problem.rewards()

    def reward(responses) -> Tensor:
        rows = zip(responses.prompts, responses.responses, strict=True)
        return torch.stack([rewards[prompt.ids[0], index[tuple(response.ids)]] for prompt, response in rows])

    return reward


def tokenizer():
    """A tokenizer that the loop needs for decoding; nothing reads the texts."""
    return tiny.tiny_tokenizer()


def all_pairs(problem: Problem, link) -> list[Unit]:
    """All pairs of responses to each prompt, labelled with the exact probability `link`(r_1 − r_2)."""
    units: list[Unit] = []
    for number, rewards in enumerate(problem.rewards().tolist()):
        rated = zip(problem.responses(), rewards, strict=True)
        for (first, better), (second, worse) in itertools.combinations(rated, 2):
            wins = link(torch.tensor(better - worse, dtype=torch.float64)).item()
            units.append((Example([number], first, preference=wins), Example([number], second, preference=1 - wins)))
    return units


def drawn_pairs(problem: Problem, link, count: int, seed: int) -> list[Unit]:
    """`count` pairs chosen uniformly from all pairs, each with a label sampled from its probability."""
    every = all_pairs(problem, link)
    generator = torch.Generator().manual_seed(seed)
    units: list[Unit] = []
    for number in torch.randint(len(every), (count,), generator=generator).tolist():
        first, second = every[number]
        wins = float(torch.rand((), generator=generator, dtype=torch.float64) < first.preference)
        units.append((replace(first, preference=wins), replace(second, preference=1 - wins)))
    return units
