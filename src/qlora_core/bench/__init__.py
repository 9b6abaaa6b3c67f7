"""The benchmark: how fast this package's trainer and others train the same rows, and whether they train the same.

`works` is what is trained; `ours`, `mlxlm` and `torchpeft` are who trains it, each in a process of its own that does
one `job`; `race` starts them in turn and compares, `report` shows and keeps what came out. `catalogue` is what there is
to choose from. Until a contestant is started, nothing here imports MLX or PyTorch.
"""

from .options import Options, add_arguments

__all__ = ["Options", "add_arguments"]
