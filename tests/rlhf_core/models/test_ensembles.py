"""Ensembles of reward models: the aggregate, its normalisation, and its folder."""

import math

import pytest
import torch

import tiny
from rlhf_core.common.batch import collate
from rlhf_core.models.ensembles import ScalarEnsemble, aggregate, load_reward_model, save_reward_model
from rlhf_core.models.forward import scores
from rlhf_core.models.store import (
    ScalarModel,
    new_scalar_model,
    save_policy,
)


def test_aggregates():
    """Scores 1, 4, 7: mean 4, minimum 1, population std √6."""
    members = torch.tensor([[1.0, 2.0], [4.0, 2.0], [7.0, 2.0]])
    assert aggregate(members, "mean", 1.0).tolist() == [4.0, 2.0]
    assert aggregate(members, "min", 1.0).tolist() == [1.0, 2.0]
    assert aggregate(members, "mean_minus_std", 0.5).tolist() == pytest.approx([4 - 0.5 * math.sqrt(6), 2.0])


@pytest.mark.pitfall(26)
@pytest.mark.parametrize("how", ["mean", "min", "mean_minus_std"])
def test_an_ensemble_is_centred_scaled_and_loaded_from_disk(tmp_path, tokenizer, how):
    """Each member is centred, then the aggregate A: (A(raw_k - o_k) - 3) / 2, also after saving."""
    save_policy(tiny.rotary(), tokenizer, tmp_path / "policy", max_new_tokens=4)
    members = []
    for seed in range(3):
        torch.manual_seed(seed)
        members.append(new_scalar_model(tmp_path / "policy").eval())
    batch = collate(tiny.examples(), tiny.PAD)
    with torch.no_grad():
        raw = torch.stack([scores(member, batch) for member in members])
        for offset, member in enumerate(members):
            member.set_normalisation(float(offset), 1.0)
        ensemble = ScalarEnsemble(members, how, 0.5)
        ensemble.set_normalisation(3.0, 2.0)
        expected = (aggregate(raw - torch.tensor([[0.0], [1.0], [2.0]]), how, 0.5) - 3.0) / 2.0
        assert torch.allclose(scores(ensemble, batch), expected, atol=1e-5)
        assert (ensemble.offset, ensemble.scale) == (4.0, 2.0)  # offsets 3, 4 and 5
        save_reward_model(ensemble, tokenizer, tmp_path / "reward")
        assert torch.equal(scores(load_reward_model(tmp_path / "reward"), batch), scores(ensemble, batch))


@pytest.mark.pitfall(26)
def test_a_single_model_is_loaded_as_a_single_model(tmp_path, tokenizer):
    save_policy(tiny.rotary(), tokenizer, tmp_path / "policy", max_new_tokens=4)
    save_reward_model(new_scalar_model(tmp_path / "policy"), tokenizer, tmp_path / "reward")
    assert isinstance(load_reward_model(tmp_path / "reward"), ScalarModel)
