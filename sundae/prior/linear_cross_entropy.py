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


class TokenScores(NamedTuple):
    """What evaluation knows of each prediction.

    Attributes:
        loss: (...) float32, cross-entropy in nats.
        correct: (...) bool, whether the most likely token is the target.
        entropy: (...) float32, of the predicted distribution, in nats: 0 to log(vocab).
    """

    loss: Tensor
    correct: Tensor
    entropy: Tensor


class Prediction(NamedTuple):
    """Loss and draws of a batch, without its logits.

    Attributes:
        loss: scalar float32, mean cross-entropy in nats, differentiable.
        accuracy: scalar float32 in [0, 1], share of rows whose most likely token is the target.
        drawn: shaped as the uniforms, int64, one token a row at temperature 1; None without.
        scores: of every row; None where a gradient is computed, since training has no use for them.
    """

    loss: Tensor
    accuracy: Tensor
    drawn: Tensor | None
    scores: TokenScores | None


def linear_cross_entropy(
    features: Tensor, head: nn.Linear, targets: Tensor, uniforms: Tensor | None = None
) -> Prediction:
    """Cross-entropy of head(features), as if by F.cross_entropy, but never all logits at once.

    The gradient is computed with the loss, chunk by chunk, so that nothing of the size of the
    logits is stored for the backward pass. Matrix products are computed in the dtype of autocast,
    everything between them in float32.

    Args:
        features: (..., dim) float.
        head: dim -> vocab.
        targets: (...) int64 in [0, vocab).
        uniforms: (...) float in [0, 1) to draw with, see `sundae.prior.categorical.draw_tokens`;
            the first dimension may be shorter, for draws of the first rows only.
    """
    device = features.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    shape = targets.shape
    loss, accuracy, drawn, *scores = _LinearCrossEntropy.apply(
        features.flatten(0, -2),
        head.weight,
        head.bias,
        targets.flatten(),
        None if uniforms is None else uniforms.flatten(),
        dtype or features.dtype,
        torch.is_grad_enabled(),
    )
    return Prediction(
        loss,
        accuracy,
        None if drawn is None or uniforms is None else drawn.view(uniforms.shape),
        TokenScores(*(score.view(shape) for score in scores)) if scores else None,
    )


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of softmax(logits): (..., vocab) float32 -> (...) float32."""
    return torch.special.entr(logits.softmax(-1)).sum(-1)


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
    ) -> tuple[Tensor | None, ...]:
        # needs_input_grad is True under no_grad, too, and gradients are always disabled in here.
        learns = grad_enabled and any(ctx.needs_input_grad[:3])
        with torch.autocast(features.device.type, enabled=False):
            x, matrix = features.to(dtype), weight.to(dtype)
            offset = None if bias is None else bias.to(dtype)
            grads = _Gradients(x, weight, bias) if learns else None
            losses, correct, draws, entropies = [], [], [], []
            for rows in _chunks(len(x), len(weight), x.device):
                logits = nn.functional.linear(x[rows], matrix, offset).float()
                target = targets[rows, None]
                total = logits.logsumexp(-1, keepdim=True)
                losses.append((total - logits.gather(1, target))[:, 0])
                correct.append(logits.argmax(-1) == target[:, 0])
                if uniforms is not None and len(points := uniforms[rows]):
                    draws.append(draw_tokens(logits[: len(points)], points))
                if grads is None:
                    entropies.append(entropy(logits))
                else:
                    grad_logits = logits.sub_(total).exp_()
                    grad_logits.scatter_add_(1, target, torch.full_like(total, -1.0))
                    grads.add(rows, grad_logits, x[rows], matrix)
        if grads is not None:
            ctx.save_for_backward(grads.features, grads.weight, grads.bias)
        ctx.count, ctx.dtypes = len(x), (features.dtype, weight.dtype)
        loss, accuracy = torch.cat(losses).mean(), torch.cat(correct).float().mean()
        drawn = torch.cat(draws) if draws else None
        ctx.mark_non_differentiable(*(value for value in (accuracy, drawn) if value is not None))
        if grads is not None:
            return loss, accuracy, drawn
        return loss, accuracy, drawn, torch.cat(losses), torch.cat(correct), torch.cat(entropies)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, bias = ctx.saved_tensors
        scale, (features_dtype, weight_dtype) = grad_loss / ctx.count, ctx.dtypes
        return (
            (features * scale).to(features_dtype),
            (weight * scale).to(weight_dtype),
            None if bias is None else (bias * scale).to(weight_dtype),
            *(None,) * 4,
        )


class _Gradients:
    """Sums over the rows of the gradients of the summed loss."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self.features = torch.empty_like(x)
        self.weight = torch.zeros_like(weight, dtype=torch.float32)
        self.bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)

    def add(self, rows: slice, grad_logits: Tensor, x: Tensor, matrix: Tensor) -> None:
        """grad_logits: (rows, vocab) float32, softmax minus one-hot; x: (rows, dim)."""
        if self.bias is not None:
            self.bias += grad_logits.sum(0)
        grad_logits = grad_logits.to(x.dtype)
        torch.mm(grad_logits, matrix, out=self.features[rows])
        self.weight += grad_logits.T @ x


def _chunks(rows: int, vocab: int, device: torch.device) -> list[slice]:
    at_once = max(_FEWEST_ROWS, (_CHUNK_CPU if device.type == "cpu" else _CHUNK_GPU) // vocab)
    return [slice(start, start + at_once) for start in range(0, rows, at_once)]
