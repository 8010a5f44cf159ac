"""saebench: train, prune, nest and measure sparse autoencoders of language models."""

__version__ = "0.1.0"
