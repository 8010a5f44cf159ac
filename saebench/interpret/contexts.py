"""What every score of interpretability is given: contexts in which a latent is active or silent. No torch.

A context is a window of consecutive tokens of one block. Those a latent is explained from (`shown`) and those it is scored
on (`held`, `negatives`) come from different documents, so that no score rewards what was merely remembered.
"""

from __future__ import annotations

from dataclasses import dataclass

STRATA = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # edges between strata of firing frequency, a share of tokens


@dataclass(frozen=True)
class Context:
    """A window of tokens: their `texts` (decoded each), the latent's activations `acts` (0 where silent), and the place of
    the token that it was chosen for, `centre`.

    `quantile`: the share of the latent's activations (over all tokens seen) that lie below acts[centre]; 0 if silent.
    """

    texts: tuple[str, ...]
    acts: tuple[float, ...]
    centre: int
    document: int
    quantile: float = 0.0

    @property
    def text(self) -> str:
        """The window as one string."""
        return "".join(self.texts)


@dataclass(frozen=True)
class LatentContexts:
    """One latent of one view, as scores see it.

    `frequency` is the share of tokens on which it is active, `stratum` its place among STRATA; `max_act` the largest
    activation seen. `shown` and `held` are contexts in which it is active: the largest activations first, then a sample of all
    its activations by falling quantile; `negatives` are contexts in which it is silent throughout, half of them around a token
    at which it is active elsewhere (matched), half of them anywhere. `promoted` and `suppressed`: the tokens whose logits its
    decoder direction raises and lowers most.
    """

    latent: int
    frequency: float
    stratum: int
    max_act: float
    shown: tuple[Context, ...]
    held: tuple[Context, ...]
    negatives: tuple[Context, ...]
    promoted: tuple[str, ...] = ()
    suppressed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Score:
    """One score of one latent: its `value`, what guessing would give (`chance`, in the same unit), from `n` judgements.

    `broken` of the n were no usable answers; they count as wrong.
    """

    latent: int
    name: str
    value: float
    chance: float
    n: int
    broken: int = 0


def stratum_of(frequency: float) -> int:
    """The place of a firing frequency among STRATA: 0 for the rarest, len(STRATA) for the most frequent."""
    return sum(frequency >= edge for edge in STRATA)
