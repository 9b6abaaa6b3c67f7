"""Processes that train or answer: plan, start, look after and end them. Imports MLX only inside those processes."""
