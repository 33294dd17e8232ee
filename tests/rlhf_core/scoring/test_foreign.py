"""An existing reward model with its own tokenizer and chat template."""

import pytest
import torch

import tiny
from rlhf_core.common.errors import UserError
from rlhf_core.common.responses import Response
from rlhf_core.models.bpe import train_tokenizer
from rlhf_core.models.responses import Responses
from rlhf_core.models.store import load_scalar_model, new_scalar_model, save_policy, save_scalar_model
from rlhf_core.models.tokens import Prompt, ready_tokenizer
from rlhf_core.scoring.foreign import load_foreign

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
    "<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def existing(folder, **changes):
    """A reward model whose tokenizer differs from that of the policy; `changes` are to its config."""
    tokenizer = ready_tokenizer(train_tokenizer(["why not", "yes no maybe", "<user> <assistant>"], 300))
    tokenizer.chat_template = TEMPLATE
    settings = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    model = tiny.rotary(3, **{**settings, "eos_token_id": tokenizer.eos_token_id, **changes})
    save_policy(model, tokenizer, folder / "policy", max_new_tokens=8)
    torch.manual_seed(0)
    save_scalar_model(new_scalar_model(folder / "policy"), tokenizer, folder / "existing")
    return folder / "existing", tokenizer


def sampled(*pairs, system=()):
    """Responses with ids of another tokenizer, which must not be read."""
    prompts = [Prompt([*system, {"role": "user", "content": prompt}], [6]) for prompt, _ in pairs]
    return Responses(prompts, [Response([7, 8], text, ended=True) for _, text in pairs], 0)


def load(folder, clamp=None):
    return load_foreign(folder, lambda model: model.eval(), 2, clamp)


def test_text_is_written_with_its_template_and_encoded_once(tmp_path):
    """The score equals that of the model alone on the rendered text, at its last token, whatever the batch."""
    folder, tokenizer = existing(tmp_path)
    model = load_scalar_model(folder).eval()
    pairs = [("why", "yes"), ("why not", "no maybe yes"), ("not", "no")]
    expected = []
    for prompt, text in pairs:
        end = tokenizer.eos_token
        ids = torch.tensor([tokenizer.encode(f"<user>{prompt}{end}<assistant>{text}{end}", add_special_tokens=False)])
        with torch.no_grad():
            expected.append(model(ids, torch.ones_like(ids), torch.arange(ids.shape[1])[None])[0, -1].item())
    assert load(folder)(sampled(*pairs)).tolist() == pytest.approx(expected, abs=1e-6)
    assert len({round(score, 4) for score in expected}) == 3
    limit = sorted(map(abs, expected))[0]
    assert load(folder, limit)(sampled(*pairs)).abs().tolist() == pytest.approx([limit] * 3, abs=1e-6)


def test_a_template_that_rejects_the_prompt_is_named(tmp_path):
    folder, _ = existing(tmp_path)
    with pytest.raises(UserError, match=r"reward model existing: its chat template rejects a prompt \(no system mess"):
        load(folder)(sampled(("why", "yes"), system=[{"role": "system", "content": "be kind"}]))


def test_a_context_that_is_too_short_is_named(tmp_path):
    folder, _ = existing(tmp_path, max_position_embeddings=8)
    with pytest.raises(UserError, match=r"existing takes 8 tokens, but a prompt with its response has \d+"):
        load(folder)(sampled(("why not", "yes no maybe yes no maybe")))


def test_a_model_without_a_template_is_refused(tmp_path):
    folder, _ = existing(tmp_path)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="reward model existing has no chat template"):
        load(folder)


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path):
    """One token more than rows."""
    folder, tokenizer = existing(tmp_path)
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(folder)
    rows = len(tokenizer) - 1
    with pytest.raises(UserError, match=rf"has ids up to {rows}, but its embedding has only {rows} rows"):
        load(folder)


def test_a_model_with_several_scores_is_refused(tmp_path):
    folder, _ = existing(tmp_path)
    model = load_scalar_model(folder).model
    model.config.num_labels = 2
    model.score = torch.nn.Linear(16, 2, bias=False)
    model.save_pretrained(folder)
    with pytest.raises(UserError, match=r"has 2 scores per text\. Use a model with one score"):
        load(folder)


def test_a_language_model_is_refused(tmp_path):
    existing(tmp_path)
    with pytest.raises(UserError, match="not a reward model"):
        load(tmp_path / "policy")
