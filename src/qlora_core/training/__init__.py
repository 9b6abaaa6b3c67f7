"""Many steps of one run: the loop, its step, checkpoints, validation, what it learnt, merged weights. Imports MLX."""
