"""The terms of policy.rewards: one file per term. `rlhf_core.scoring.terms_table` finds them."""
