"""The rewards of on-policy methods (policy.rewards), and best-of-N sampling by them."""
