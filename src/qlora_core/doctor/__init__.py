"""Checks of whether this machine can train: its hardware, its arithmetic, and all of training on tiny models."""
