"""One model on one device: load it, attach adapters, compute its loss and answers. The first half that imports MLX.

`device` comes first: it puts a fast BLAS in place before anything imports MLX.
"""
