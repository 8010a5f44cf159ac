"""What the collection of contexts is told. No torch, so that a wrong key is reported before the heavy libraries load."""

from __future__ import annotations

from dataclasses import dataclass

from saebench.checks import at_least, require


@dataclass
class CollectConfig:
    """How many contexts of each latent are kept, how long they are, and how many training tokens are looked at."""

    tokens: int = 10_000_000  # training tokens looked at, in whole blocks; the first of their permuted order
    top: int = 16  # contexts with the largest activations, half of them of documents held out for scoring
    samples: int = 24  # contexts drawn from all activations, half of them likewise
    window: int = 32  # tokens of a context; fewer where its document or its block ends
    pool: int = 65_536  # tokens whose active latents are all kept, from which negatives are drawn
    batch: int = 4096  # tokens encoded at once, in whole blocks; fewer where there are many latents
    memory_gb: float = 8.0  # bound on what collecting holds (collect.bytes_needed)
    seed: int = 0  # of the documents held out and of what is sampled

    def __post_init__(self) -> None:
        for key, low in (("tokens", 1), ("top", 2), ("samples", 2), ("window", 1), ("pool", 1), ("batch", 1)):
            at_least(f"interpret.{key}", getattr(self, key), low)
        for key in ("top", "samples"):
            value = getattr(self, key)
            require(value % 2 == 0, f"interpret.{key}={value}: must be even, for half are of held-out documents")
        require(self.window < 1 << 15, f"interpret.window={self.window}: must be below {1 << 15}")
        require(self.memory_gb > 0, f"interpret.memory_gb={self.memory_gb}: must exceed 0")
