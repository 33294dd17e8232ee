"""What the reward models of a stage start from: the SFT model, or reward.base with its tokenizer."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_core.feedback.judgement import PREFERENCES
from rlhf_core.loops.common import preflight
from rlhf_core.models.store import load_tokenizer, save_tokenizer
from rlhf_core.models.tokens import ready_tokenizer, same_tokens
from tasks.common.models import StageModels
from tasks.common.preflight import ROWS, Check, pad_token, prepared, row_checks, tolerance
from tasks.common.rows import OwnTokenizer, Reader, preference_units
from tasks.common.source import reward_base
from tasks.files.paths import FEEDBACK, TOKENIZER, rows
from tasks.params.schema import Params


@dataclass(frozen=True)
class Start:
    """What the reward models of a stage start from: the SFT model, or reward.base with its tokenizer.

    models: loads new reward models. own: the tokenizer, if it is not the policy's. manifest: identifies reward.base.
    """

    models: StageModels
    tokenizer: PreTrainedTokenizerBase
    own: OwnTokenizer | None = None
    manifest: Mapping[str, Any] | None = None

    @property
    def reader(self) -> Reader:
        """What encodes the rows of the feedback."""
        return self.own or self.tokenizer


def start(params: Params, folder: Path) -> Start:
    """Find what reward models start from. The tokenizer of reward.base is saved in `folder`.

    Raises:
        UserError: reward.base cannot be used; or its tokenizer has ids beyond its embedding.
    """
    policy, base = load_tokenizer(TOKENIZER), params.reward.base
    if base is None:
        return Start(StageModels(params), policy)
    source = reward_base(base)
    assert source.folder is not None
    tokenizer = ready_tokenizer(load_tokenizer(source.folder))
    save_tokenizer(tokenizer, folder)
    models = StageModels(params, source.folder, f"reward.base {base}", folder)
    own = None if same_tokens(tokenizer, policy) else OwnTokenizer(tokenizer, f"reward.base {base}")
    return Start(models, tokenizer, own, source.manifest())


def reward_checks(params: Params) -> Iterator[Check]:
    """Yield the checks of a new reward model and of the held-out preferences; none if the data has no preferences."""
    with TemporaryDirectory() as folder:
        begin = start(params, Path(folder))
        pairs = preference_units(rows(FEEDBACK, PREFERENCES, "development"), begin.reader, ROWS)
        examples = [example for pair in pairs for example in pair]
        model = prepared(params, begin.models.new_reward_model()) if examples else None
    if model is not None:
        pad, rounding = pad_token(begin.tokenizer), tolerance(params)
        yield from row_checks(examples, begin.tokenizer, is_sampled=True)
        yield "scores in any batch", partial(preflight.check_scores, model, examples, pad, rounding)
        yield "learning rate", partial(preflight.check_learning_rate, model, params.reward.learning_rate)
