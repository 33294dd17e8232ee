"""Policies on disk: values stored with the weights."""

import pytest

import tiny
from rlhf_core.models.store import load_policy, own_temperature, save_policy


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_policy_stores_its_training_temperature(tmp_path, tokenizer, temperature):
    save_policy(tiny.rotary(), tokenizer, tmp_path, max_new_tokens=4, temperature=temperature)
    assert own_temperature(load_policy(tmp_path)) == temperature
