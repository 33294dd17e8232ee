"""policy.rewards, which decide what on-policy methods learn, and best-of-N sampling by them."""
