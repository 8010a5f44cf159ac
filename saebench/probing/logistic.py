"""Logistic regression to its optimum, in float64 on the CPU: no steps to tune, no draws, the same weights every time.

The objective is scikit-learn's. For features x_i [d], whether y_i, and weights s_i of the rows (0 leaves one out)

    F(w, b) = ridge / 2 |w|^2 + sum_i s_i log(1 + exp(-t_i (<w, x_i> + b))),   t_i = 1 if y_i else -1

(ridge = 1 / C). Features are scaled to unit variance over the training rows first, so that the penalty means the same for
activations and for latents of any scale; weights are given in the features' own units. Several problems on the same
features, one a column of y and s, are solved side by side.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from saebench.progress import say
from saebench.sparse import SparseLatents

TOLERANCE = 1e-6  # of the largest component of the gradient, over the number of rows
ITERATIONS = 2000


class Design(NamedTuple):
    """Features scaled to unit variance over the training rows: (features - centre) / scale.

    `x` [n, d] and its transpose `xt` [d, n], dense or sparse; `centre` [d] (zeros if sparse) and `scale` [d].
    """

    x: Tensor | SparseLatents
    xt: Tensor | SparseLatents
    centre: Tensor
    scale: Tensor

    def scores(self, w: Tensor) -> Tensor:
        """x w: [n, c] from weights [d, c]."""
        return times(self.x, w)

    def gather(self, slope: Tensor) -> Tensor:
        """x^T slope: [d, c] from slopes [n, c]."""
        return times(self.xt, slope)

    @staticmethod
    def dense(x: Tensor, train: Tensor) -> Design:
        """Of features x [n, d], scaled by the rows in `train` [n] (bool); a feature that does not vary there is left as it is."""
        x = x.double()
        centre = x[train].mean(0)
        deviation = (x[train] - centre).square().mean(0).sqrt()
        scale = torch.where(deviation > 0, deviation, 1.0)
        scaled = (x - centre) / scale
        return Design(scaled, scaled.T, centre, scale)

    @staticmethod
    def sparse(latents: SparseLatents, train: Tensor) -> Design:
        """Of latents, which are not centred (the intercept does it), scaled by the rows in `train` [n] (bool)."""
        inside = train[latents.row_of_entry]
        at, values = latents.indices[inside], latents.values[inside].double()
        n = int(train.sum())
        mean = torch.zeros(latents.d_sae, dtype=torch.float64).index_add_(0, at, values) / n
        square = torch.zeros_like(mean).index_add_(0, at, values.square()) / n
        deviation = (square - mean.square()).clamp(min=0).sqrt()
        scale = torch.where(deviation > 1e-12 * mean, deviation, 1.0)
        x = latents.with_values(latents.values.double() / scale[latents.indices])
        order, _, rows, offsets = x.by_latent
        xt = SparseLatents(offsets, rows, x.values[order], x.rows)
        return Design(x, xt, torch.zeros_like(scale), scale)

    def in_units(self, w: Tensor, b: Tensor) -> Probes:
        """Weights w [d, c] and intercepts b [c] of scaled features as those of the features themselves."""
        weights = w / self.scale.unsqueeze(1)
        return Probes(weights, b - self.centre @ weights)


def times(matrix: Tensor | SparseLatents, table: Tensor) -> Tensor:
    """A product with a dense table."""
    return matrix @ table if isinstance(matrix, Tensor) else matrix.decode(table)


class Probes(NamedTuple):
    """Weights w [d, c] and intercepts b [c] of c problems: score = x w + b, above 0 for the class."""

    w: Tensor
    b: Tensor


def balanced(y: Tensor, train: Tensor) -> Tensor:
    """Weights [n, c] of training rows for y [n, c] (bool) that give both sides n / 2, as scikit-learn's balanced; 0 elsewhere."""
    inside = train.unsqueeze(1)
    n, yes = train.sum(), (y & inside).sum(0).double()  # [], [c]
    assert bool(((yes > 0) & (yes < n)).all()), "a probe needs rows of both sides"
    return torch.where(y, n / (2 * yes), n / (2 * (n - yes))) * inside


def signs(y: Tensor) -> Tensor:
    """1 for True and -1 for False, float64."""
    return torch.where(y, 1.0, -1.0).double()


def fit(design: Design, y: Tensor, weights: Tensor, ridge: float) -> Probes:
    """The optimum for every column of y [n, c] (bool) and weights [n, c], by L-BFGS until TOLERANCE; says so if that fails."""
    t, n = signs(y), int((weights > 0).any(1).sum())
    w = torch.zeros(len(design.scale), y.shape[1], dtype=torch.float64, requires_grad=True)
    b = torch.zeros(y.shape[1], dtype=torch.float64, requires_grad=True)

    @torch.no_grad()
    def closure() -> Tensor:
        margin = t * (design.scores(w) + b)  # [n, c]
        slope = -t * weights * torch.sigmoid(-margin) / n
        w.grad, b.grad = design.gather(slope) + ridge / n * w, slope.sum(0)
        return (weights * softplus(-margin)).sum() / n + ridge / (2 * n) * w.square().sum()

    optimiser = torch.optim.LBFGS(
        [w, b], max_iter=ITERATIONS, tolerance_grad=TOLERANCE, tolerance_change=0.0, history_size=20,
        line_search_fn="strong_wolfe",
    )  # fmt: skip
    optimiser.step(closure)
    closure()
    assert w.grad is not None and b.grad is not None  # noqa: PT018
    left = max(float(w.grad.abs().max()), float(b.grad.abs().max()))
    if left > 10 * TOLERANCE:
        say(
            f"a logistic regression on {w.shape[0]:,} features stopped with a gradient of {left:.1e} (wanted {TOLERANCE:.0e})"
        )
    return design.in_units(w.detach(), b.detach())


def fit_few(x: Tensor, y: Tensor, weights: Tensor, ridge: float) -> Probes:
    """The optimum for a few features x [n, k], one problem y [n] (bool) with weights [n], by damped Newton steps."""
    design = Design.dense(x, weights > 0)
    ones = torch.ones(len(x), 1, dtype=torch.float64)
    assert isinstance(design.x, Tensor)
    features, t = torch.cat([design.x, ones], 1), signs(y)  # [n, k + 1], [n]
    penalty = torch.full((features.shape[1],), ridge, dtype=torch.float64)
    penalty[-1] = 0.0
    v = torch.zeros_like(penalty)  # [k + 1]

    def value(v: Tensor) -> float:
        return float((weights * softplus(-t * (features @ v))).sum() + 0.5 * (penalty * v.square()).sum())

    for _ in range(100):
        p = torch.sigmoid(-t * (features @ v))  # [n]
        grad = penalty * v - features.T @ (weights * t * p)
        hessian = features.T @ (features * (weights * p * (1 - p)).unsqueeze(1)) + penalty.diag()
        step = torch.linalg.solve(hessian, grad)
        gain, now = float(grad @ step), value(v)
        if gain < 1e-9 * len(x):
            v = v - step  # so near that the error is squared; smaller gains are lost in the rounding of the objective
            break
        size = 1.0
        while value(v - size * step) > now - 1e-4 * size * gain and size > 1e-10:
            size /= 2
        v = v - size * step
    return design.in_units(v[:-1].unsqueeze(1), v[-1:])


def lasso(design: Design, y: Tensor, weights: Tensor, l1: float, steps: int = 500) -> Tensor:
    """Weights [d, c] of the scaled features that minimise mean_i s_i log(1 + exp(-t_i score_i)) + l1 |w|_1, for ranking them.

    Accelerated proximal gradient steps (Beck, Teboulle 2009) with restarts, each column at its own step size.
    """
    t, n = signs(y), int((weights > 0).any(1).sum())
    size = 1 / (curvature(design, weights) / (4 * n))  # [c]
    w = torch.zeros(len(design.scale) + 1, y.shape[1], dtype=torch.float64)  # the last row is the intercept
    ahead, turn = w, torch.ones(y.shape[1], dtype=torch.float64)
    for _ in range(steps):
        slope = -t * weights * torch.sigmoid(-t * (design.scores(ahead[:-1]) + ahead[-1])) / n  # [n, c]
        moved = ahead - size * torch.cat([design.gather(slope), slope.sum(0, keepdim=True)])
        moved[:-1] = moved[:-1].sign() * (moved[:-1].abs() - size * l1).clamp(min=0)
        turn = torch.where(((ahead - moved) * (moved - w)).sum(0) > 0, 1.0, turn)  # restart
        later = (1 + (1 + 4 * turn.square()).sqrt()) / 2
        w, ahead, turn = moved, moved + (turn - 1) / later * (moved - w), later
    return w[:-1]


def curvature(design: Design, weights: Tensor) -> Tensor:
    """[c]: a bound on the largest eigenvalue of [x, 1]^T diag(s) [x, 1], from 30 steps of the power method and a tenth more."""
    v = torch.ones(len(design.scale) + 1, weights.shape[1], dtype=torch.float64)
    length = v.norm(dim=0)
    for _ in range(30):
        v = v / length
        seen = weights * (design.scores(v[:-1]) + v[-1])  # [n, c]
        v = torch.cat([design.gather(seen), seen.sum(0, keepdim=True)])
        length = v.norm(dim=0)
    return 1.1 * length


def f1(predicted: Tensor, y: Tensor) -> Tensor:
    """2 TP / (2 TP + FP + FN) over the rows of two bool tensors [n] or [n, c]: [] or [c]; 0 if there is no such row at all."""
    both, either = (predicted & y).sum(0), predicted.sum(0) + y.sum(0)
    return 2.0 * both / either.clamp(min=1)
