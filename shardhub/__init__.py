"""Pipeline-parallel LLM inference with MLX: split, publish, serve and run a model across several machines."""

__version__ = "0.1.0"

__all__ = ["__version__"]
