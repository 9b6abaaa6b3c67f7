"""The benchmark: how fast this package's trainer and others train the same rows, and whether they train the same.

`works` is what is trained, `contestants` who trains it (`ours`, `mlxlm`, `torchpeft`), each in a process of its own that
does one `job`; `race` starts them in turn and compares, `report` shows and keeps what came out. Until a contestant is
started, nothing here imports MLX or PyTorch.
"""
