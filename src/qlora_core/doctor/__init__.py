"""Whether this machine can train: what it is, whether it computes rightly, and the whole path on tiny models."""
