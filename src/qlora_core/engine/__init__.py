"""Load one model on one device, attach adapters, and compute its loss and its answers.

With `training`, the only package that imports MLX. `device` comes first: it puts a fast BLAS in place before anything
imports MLX.
"""
