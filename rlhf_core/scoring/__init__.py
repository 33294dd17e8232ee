"""What a response is worth: exact answers, reward terms and judges."""
