"""Fine-tune language models with QLoRA on MLX. `docs/architecture.md` is the map of the packages."""

__version__ = "0.1.0"
