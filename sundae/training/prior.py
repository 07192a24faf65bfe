"""Training of a prior: the SUNDAE objective as a trainer's task, its data, its checks."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from hourglass_transformer import HourglassTransformer
from hourglass_transformer.windows import Windows
from sundae.common.errors import UserError
from sundae.config.run_file import RunConfig, dump_toml
from sundae.data.dataset import Latents, TokenDataset, check_agreement, open_latents
from sundae.data.splits import split_rows
from sundae.prior.checkpoint import Checkpoint
from sundae.prior.compatibility import check_same_classes, check_same_codec, check_same_network
from sundae.prior.linear_cross_entropy import TokenScores
from sundae.prior.network import build_network
from sundae.prior.objective import DEFAULTS, corruption_rates, step_weights, unroll
from sundae.prior.run import RUN_FILE
from sundae.training.batches import Batch
from sundae.training.experiment import Experiment
from sundae.training.metrics import Metrics, PartialSum
from sundae.training.rate_bins import by_rate
from sundae.training.trainer import Losses


class PriorExperiment(Experiment):
    """The training of a prior, as train.py runs it."""

    kind, run_file = "prior", RUN_FILE
    cfg: RunConfig

    def __init__(
        self, cfg: RunConfig, data: tuple[TokenDataset, TokenDataset], codec: str = ""
    ) -> None:
        """codec: identity of the codec of the tokens."""
        super().__init__(cfg, data)
        self.codec = codec
        self.classes = list(data[0].latents.classes or ()) if cfg.net.conditional else None

    @classmethod
    def open(cls, cfg: RunConfig, codec: str, checkpoint: Checkpoint | None) -> PriorExperiment:
        """Open the data of a run file.

        Raises:
            UserError: the data is missing or belongs to another run file, or the checkpoint to
                another network, codec or data.
        """
        if checkpoint is not None:
            check_same_network(cfg, checkpoint)
        experiment = cls(cfg, open_datasets(cfg, codec), codec)
        if checkpoint is not None:
            check_same_codec(codec, checkpoint)
            check_same_classes(experiment.classes, checkpoint)
        return experiment

    def build(self, device: torch.device, accumulate: int) -> tuple[nn.Module, PriorTask]:
        net = build_network(self.cfg)
        net.set_gradient_checkpointing(self.cfg.trainer.gradient_checkpointing)
        return net, PriorTask(self.cfg)

    def compilable(self, net: nn.Module) -> list[nn.Module]:
        return [net]

    def not_compiled_on_cuda(self, net: nn.Module) -> str:
        """With two layers of shifted windows, compiled gradients are wrong on an H100 (torch 2.11),
        with torch's attention kernels and without; smoke/windows of benchmarks/gpu.py shows it.
        """
        masked = any(isinstance(m, Windows) and m.mask is not None for m in net.modules())
        return "gradients of shifted windows (net.window) may be wrong then" if masked else ""

    def dump(self) -> str:
        return dump_toml(self.cfg)

    def describe(self, net: nn.Module) -> str:
        parameters = sum(p.numel() for p in net.parameters())
        train, held_out = map(len, self.data)
        return f"{parameters:,} parameters, {train:,} training and {held_out:,} held-out grids"


class PriorTask:
    """The SUNDAE objective: one loss for every unroll step."""

    watched = "loss"

    def __init__(self, cfg: RunConfig) -> None:
        self.num_losses, self.cfg = cfg.unroll_steps, cfg

    def losses(self, net: nn.Module, batch: Batch, generator: torch.Generator) -> Losses:
        """Yield (loss, metrics) of each unroll step; see `sundae.prior.objective.unroll`.

        The options of [objective] are those of training: in evaluation all have their defaults.

        Metrics are loss and accuracy, of a step ("loss_1") and over the steps ("loss"). In
        evaluation there are also the entropy of the predictions, in the same way, and loss and
        accuracy by corruption rate, which are those of the first step: its input is what the rate
        tells of, while the next steps see samples.
        """
        cfg = self.cfg.net
        classes = batch["classes"] if cfg.conditional else None
        if classes is not None and net.training and cfg.class_dropout:
            classes = drop_classes(classes, cfg.class_dropout, cfg.num_classes, generator)
        head, tokens = head_of(net), batch["tokens"]
        learns = net.training and torch.is_grad_enabled()
        options = self.cfg.objective if learns else DEFAULTS
        rates = self.rates(len(tokens), generator)
        weights = step_weights(len(tokens), self.num_losses, options.unroll_share)
        steps = unroll(
            lambda current: net(
                current,
                None if classes is None else classes[: len(current)],
                **({} if head is None else {"head": False}),
            ),
            tokens,
            unroll_steps=self.num_losses,
            vocab_size=self.cfg.data.vocab_size,
            generator=generator,
            head=head,
            rates=rates,
            options=options,
            grid=self.cfg.grid_shape,
        )
        for number, (step, weight) in enumerate(zip(steps, weights, strict=True), start=1):
            means = {"loss": step.loss, "accuracy": step.accuracy}
            if step.scores is not None:
                means["entropy"] = step.scores.entropy.mean()
            metrics: Metrics = means | {f"{name}_{number}": mean for name, mean in means.items()}
            if step.scores is not None and number == 1:
                metrics = {**metrics, **_by_rate(step.scores, rates)}
            yield step.loss if weight == 1 else step.loss * weight, metrics

    def rates(self, count: int, generator: torch.Generator) -> Tensor:
        """Corruption rates of a batch: (count,) float32 in [0, 1], on the generator's device."""
        return corruption_rates(count, generator)


def _by_rate(scores: TokenScores, rates: Tensor) -> dict[str, PartialSum]:
    """Loss and accuracy of samples, (batch, length) scores, by the rates (batch,)."""
    losses, accuracies = scores.loss.mean(1), scores.correct.float().mean(1)
    return by_rate("loss", losses, rates) | by_rate("accuracy", accuracies, rates)


def head_of(net: nn.Module) -> nn.Linear | None:
    """The last linear map of a network that can leave it out, also of a distributed one."""
    bare = getattr(net, "module", net)
    return bare.to_logits if isinstance(bare, HourglassTransformer) else None


def drop_classes(
    classes: Tensor, probability: float, null_class: int, generator: torch.Generator
) -> Tensor:
    """Replace each class by the null class with a probability (arXiv 2207.12598, algorithm 1).

    Args:
        classes: (batch,) int64, as is what is returned.
        generator: on the device of the classes.
    """
    dropped = torch.rand(len(classes), generator=generator, device=classes.device) < probability
    return classes.masked_fill(dropped, null_class)


def open_datasets(cfg: RunConfig, codec_identity: str) -> tuple[TokenDataset, TokenDataset]:
    """(training, held-out) rows of a run's data, checked against the network and the codec.

    Raises:
        UserError: the data is missing or does not belong to this run; see `check_agreement`.
    """
    data = cfg.data
    if data.root is not None:
        latents = _open(cfg, data.root, codec_identity)
        assert data.split_sizes is not None
        rows = split_rows(latents, data.split_sizes)
        train, held_out = (TokenDataset(latents, some) for some in rows)
    else:
        assert data.train_root is not None and data.eval_root is not None
        roots = data.train_root, data.eval_root
        train, held_out = (TokenDataset(_open(cfg, root, codec_identity)) for root in roots)
        if cfg.net.conditional and train.latents.classes != held_out.latents.classes:
            raise UserError(
                f"{data.train_root} and {data.eval_root} have different classes; "
                "generate both from folders of the same names"
            )
    if cfg.net.conditional:
        _check_every_class_has_images(train)
    return train, held_out


def _open(cfg: RunConfig, root: Path, codec_identity: str) -> Latents:
    latents = open_latents(root)
    check_agreement(
        latents,
        vocab_size=cfg.data.vocab_size,
        latent_shape=cfg.grid_shape,
        num_classes=cfg.net.num_classes if cfg.net.conditional else None,
        codec_identity=codec_identity,
    )
    return latents


def _check_every_class_has_images(data: TokenDataset) -> None:
    latents = data.latents
    assert latents.labels is not None and latents.classes is not None  # see `check_agreement`
    present = set(latents.labels[latents.images[data.rows]].tolist())
    for number, name in enumerate(latents.classes):
        if number not in present:
            raise UserError(
                f"{latents.root}: class '{name}' has no images to train on; add some or "
                "generate the data again without it"
            )
