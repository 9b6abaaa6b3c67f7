"""Fine-tune language models with QLoRA on MLX. See README.md; `cli` is the command line, `trainer` the loop."""

__version__ = "0.1.0"
