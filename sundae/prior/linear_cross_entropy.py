"""The last linear map, its cross-entropy and a draw from it, a few rows of logits at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sundae.prior.categorical import draw_tokens

# Logits in float32 at once: 16 MB on a CPU, 128 MB on a GPU; but enough rows to keep a matrix
# product busy and the sums over the parts few.
_CHUNK_CPU, _CHUNK_GPU = 2**19, 2**25
_FEWEST_ROWS = 512


class Prediction(NamedTuple):
    """What the logits of a batch say, without the logits.

    Attributes:
        loss: scalar float32, mean cross-entropy in nats, differentiable.
        accuracy: scalar float32 in [0, 1], share of rows whose most likely token is the target.
        drawn: (...) int64, one token a row at temperature 1; None if no draw was asked for.
    """

    loss: Tensor
    accuracy: Tensor
    drawn: Tensor | None


def linear_cross_entropy(
    features: Tensor, head: nn.Linear, targets: Tensor, uniforms: Tensor | None = None
) -> Prediction:
    """Cross-entropy of head(features), as if by F.cross_entropy, but never all logits at once.

    The gradient is computed with the loss, from the logits while they are there, so that nothing
    of the size of the logits waits for the backward pass. The products are computed in the type
    that autocast asks for, everything between them in float32.

    Args:
        features: (..., dim) float.
        head: dim -> vocab.
        targets: (...) int64 in [0, vocab).
        uniforms: (...) float in [0, 1) to draw with, see `sundae.prior.categorical.draw_tokens`.
    """
    device = features.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    shape = targets.shape
    loss, right, drawn = _LinearCrossEntropy.apply(
        features.flatten(0, -2),
        head.weight,
        head.bias,
        targets.flatten(),
        None if uniforms is None else uniforms.flatten(),
        dtype or features.dtype,
        torch.is_grad_enabled(),
    )
    return Prediction(loss, right, None if drawn is None else drawn.view(shape))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        uniforms: Tensor | None,
        dtype: torch.dtype,
        grad_enabled: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        # What needs a gradient says so under no_grad, too, and in here none is ever enabled.
        learns = grad_enabled and any(ctx.needs_input_grad[:3])
        with torch.autocast(features.device.type, enabled=False):
            x, matrix = features.to(dtype), weight.to(dtype)
            offset = None if bias is None else bias.to(dtype)
            grads = _Gradients(x, weight, bias) if learns else None
            losses, hits, draws = [], [], []
            for rows in _chunks(len(x), len(weight), x.device):
                logits = nn.functional.linear(x[rows], matrix, offset).float()
                target = targets[rows, None]
                total = logits.logsumexp(-1, keepdim=True)
                losses.append((total - logits.gather(1, target)).sum())
                hits.append((logits.argmax(-1) == target[:, 0]).sum())
                if uniforms is not None:
                    draws.append(draw_tokens(logits, uniforms[rows]))
                if grads is not None:
                    error = logits.sub_(total).exp_()
                    error.scatter_add_(1, target, torch.full_like(total, -1.0))
                    grads.add(rows, error, x[rows], matrix)
        if grads is not None:
            ctx.save_for_backward(grads.features, grads.weight, grads.bias)
        ctx.count, ctx.dtypes = len(x), (features.dtype, weight.dtype)
        loss = torch.stack(losses).sum() / len(x)
        right = torch.stack(hits).sum() / len(x)
        drawn = torch.cat(draws) if draws else None
        ctx.mark_non_differentiable(*(value for value in (right, drawn) if value is not None))
        return loss, right, drawn

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, bias = ctx.saved_tensors
        scale, (features_dtype, weight_dtype) = by_loss / ctx.count, ctx.dtypes
        return (
            (features * scale).to(features_dtype),
            (weight * scale).to(weight_dtype),
            None if bias is None else (bias * scale).to(weight_dtype),
            None,
            None,
            None,
            None,
        )


class _Gradients:
    """Sums over the rows of the gradients of the summed loss."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self.features = torch.empty_like(x)
        self.weight = torch.zeros_like(weight, dtype=torch.float32)
        self.bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)

    def add(self, rows: slice, error: Tensor, x: Tensor, matrix: Tensor) -> None:
        """error: (rows, vocab) float32, softmax minus one-hot; x: (rows, dim)."""
        if self.bias is not None:
            self.bias += error.sum(0)
        error = error.to(x.dtype)
        torch.mm(error, matrix, out=self.features[rows])
        self.weight += error.T @ x


def _chunks(rows: int, vocab: int, device: torch.device) -> list[slice]:
    at_once = max(_FEWEST_ROWS, (_CHUNK_CPU if device.type == "cpu" else _CHUNK_GPU) // vocab)
    return [slice(start, start + at_once) for start in range(0, rows, at_once)]
