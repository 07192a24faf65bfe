"""How well priors fill a hole in held-out images: its tokens' loss, the completions' distance.

The hole is half of the image's height and width, in its middle; completions have no class.

    python benchmarks/holes.py pretrained/emoji exp/emoji64 --image holes.png
    python benchmarks/holes.py exp/emoji64 --sampling steps=16 strategy=renoise --sampling steps=60
"""

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sundae.common.errors import UserError
from sundae.common.files import write_json
from sundae.common.images import save_grid
from sundae.config.values import parse_override
from sundae.evaluation.frechet import frechet_distance
from sundae.features.interface import FeatureNetwork
from sundae.features.loading import FEATURES, load_features
from sundae.prior.categorical import seeded_uniforms
from sundae.sampling.sampler import BaseSampler, sample_seeds
from sundae.sampling.state import starting_tokens
from sundae.training.prior import open_datasets
from utils import choose_device, run_cli, say

_HALF = 2**30  # stream of the noise at half of the tokens, which no step of sampling has
_SHOWN = 12  # images of --image


def central_hole(grid: tuple[int, int]) -> Tensor:
    """(height, width) bool: the middle half of the height and width."""
    height, width = grid
    hole = torch.zeros(grid, dtype=torch.bool)
    hole[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    return hole


@torch.inference_mode()
def hole_loss(sampler: BaseSampler, tokens: Tensor, hole: Tensor, seed: int, rate: float) -> float:
    """Cross-entropy in nats of the tokens in a hole where a share of them is noise.

    Args:
        tokens: (N, height, width) int64, clean.
        hole: (height, width) bool.
        seed: of the noise.
        rate: the share.
    """
    seeds, losses = sample_seeds(seed, len(tokens)), []
    for some, part in zip(tokens.split(64), seeds.split(64), strict=True):
        clean = some.flatten(1)
        noise = starting_tokens(part, clean.shape[1], sampler.cfg.data.vocab_size)
        noisy = seeded_uniforms(part, _HALF, clean.shape[1]) < rate
        given = torch.where(noisy & hole.flatten(), noise, clean).to(sampler.device)
        logits = sampler._denoise(given, sampler_classes(sampler, len(some)))
        wanted = clean[:, hole.flatten()].to(sampler.device)
        inside = logits[:, hole.flatten().to(sampler.device)].float()
        losses.append(F.cross_entropy(inside.transpose(1, 2), wanted, reduction="none").cpu())
    return torch.cat(losses).mean().item()


def sampler_classes(sampler: BaseSampler, count: int) -> Tensor | None:
    """(count,) int64, the null class, on the device; None where there are no classes."""
    rows = sampler.class_rows(None, count, null_default=True)
    return None if rows is None else rows.to(sampler.device)


def completions(
    sampler: BaseSampler, tokens: Tensor, hole: Tensor, seed: int, settings: dict[str, object]
) -> Tensor:
    """(N, height, width) int64: the given tokens with the hole in each grid filled."""
    seeds = sample_seeds(seed, len(tokens))
    noise = starting_tokens(seeds, hole.numel(), sampler.cfg.data.vocab_size).view_as(tokens)
    batches = sampler.refine_tokens(
        seeds,
        sampler.class_rows(None, len(tokens), null_default=True),
        sampler.settings(**settings),
        tokens=torch.where(hole, noise, tokens),
        frozen=~hole.expand_as(tokens),
    )
    return torch.cat([batch.tokens.cpu() for batch in batches if batch.is_final])


@torch.inference_mode()
def features_of(network: FeatureNetwork, sampler: BaseSampler, tokens: Tensor) -> Tensor:
    """(N, dim) float64 of the decoded images."""
    found = []
    for some in tokens.split(100):
        images = (sampler.codec.decode(some.to(sampler.device)).float() * 255).round() / 255
        found.append(torch.as_tensor(network(images.clamp(0, 1)).pooled).double().cpu())
    return torch.cat(found)


def held_out_tokens(sampler: BaseSampler, run: Path, most: int) -> Tensor:
    """(N, height, width) int64: evenly spaced held-out grids of the run's data, at most so many."""
    if sampler.class_names and sampler.cfg.net.null_class is None:
        raise UserError(f"{run} has no null class to complete with; train it with class dropout")
    held_out = open_datasets(sampler.cfg, sampler.codec.identity)[1]
    count = min(most, len(held_out))
    if count < 2:
        raise UserError(f"{run}: {count} held-out grid; a distance needs at least 2")
    rows = torch.linspace(0, len(held_out) - 1, count).long().tolist()
    tokens: Tensor = held_out.__getitems__(rows)["tokens"].long()
    return tokens.unflatten(1, sampler.grid)


def shown(tokens: Tensor) -> Tensor:
    """Evenly spaced rows for --image."""
    return tokens[torch.linspace(0, len(tokens) - 1, min(_SHOWN, len(tokens))).long()]


@torch.inference_mode()
def decoded(sampler: BaseSampler, tokens: Tensor) -> Tensor:
    """(N, 3, H, W) float32 in [0, 1] on the CPU."""
    images: Tensor = sampler.codec.decode(tokens.to(sampler.device))
    return images.cpu()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    flag = parser.add_argument
    flag("runs", type=Path, nargs="+", metavar="RUN", help="run folder, checkpoint or release")
    flag("--data", type=Path, metavar="DIR", help="token grids (default: those of the run)")
    flag("--nb-images", type=int, default=200, metavar="N", help="held-out images (default: 200)")
    flag("--features", choices=FEATURES, default="efficientnet-lite0", help="of the distance "
         "(default: efficientnet-lite0)")  # fmt: skip
    flag("--sampling", nargs="+", action="append", metavar="KEY=VALUE", help="keys of [sampling] "
         "for a column of completions, instead of the run's own; repeatable")  # fmt: skip
    flag("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    flag("--json", type=Path, metavar="FILE", help="write the figures")
    flag("--image", type=Path, metavar="FILE", help="write a grid: originals, then a row for each "
         "run and column")  # fmt: skip
    flag("--no-cuda", action="store_true", help="run on the CPU even where there is a GPU")
    flag("--quiet", action="store_true", help="print the table only")
    return parser.parse_args()


def read_sampling(given: list[list[str]] | None) -> dict[str, dict[str, object]]:
    """Column title -> keys of [sampling]."""
    columns: dict[str, dict[str, object]] = {}
    for settings in given or []:
        pairs = [parse_override(f"sampling.{setting}") for setting in settings]
        columns[" ".join(settings)] = {key.split(".")[1]: value for key, value in pairs}
    return columns or {"the run's own": {}}


def main() -> None:
    args = parse_args()
    if args.nb_images < 2:
        raise UserError("--nb-images must be at least 2")
    columns = read_sampling(args.sampling)
    device = choose_device(args.no_cuda, args.quiet)
    network = load_features(args.features, device, quiet=args.quiet)
    overrides = [] if args.data is None else [f"data.root={args.data}"]
    figures: dict[str, dict[str, object]] = {}
    images: list[Tensor] = []
    titles = [f"{network.distance_name}, right: {title}" for title in columns]
    say("| | loss, all noise | half noise | " + " | ".join(titles) + " |")
    say("|---" * (3 + len(columns)) + "|")
    for run in args.runs:
        sampler = BaseSampler.from_pretrained(run, overrides=overrides, device=device)
        tokens = held_out_tokens(sampler, run, args.nb_images)
        hole = central_hole(sampler.grid)
        real = features_of(network, sampler, tokens)
        losses = [hole_loss(sampler, tokens, hole, args.seed, rate) for rate in (1.0, 0.5)]
        found: dict[str, object] = {
            "images": len(tokens),
            "loss": losses[0],
            "loss_half": losses[1],
        }
        cells = [f"{loss:.3f}" for loss in losses]
        images += [] if images else [decoded(sampler, shown(tokens))]
        for title, settings in tqdm(columns.items(), disable=args.quiet or None, leave=False):
            filled = completions(sampler, tokens, hole, args.seed, settings)
            distance = frechet_distance(features_of(network, sampler, filled), real)
            right = (filled == tokens)[:, hole].double().mean().item()
            found[title] = {"frechet_distance": distance, "right": right}
            cells.append(f"{distance:.1f}, {right:.1%}")
            images.append(decoded(sampler, shown(filled)))
        figures[str(run)] = found
        say(f"| {run} | " + " | ".join(cells) + " |")
        if args.json:
            protocol = {"seed": args.seed, "features": network.protocol}
            write_json(args.json, {"protocol": protocol, "runs": figures})
    if args.image:
        save_grid(torch.cat(images), args.image, columns=len(images[0]))


if __name__ == "__main__":
    run_cli(main)
