"""Scores a codec and a prior on images they never saw; makes the images of the model card.

python benchmarks/pretrained.py --dataset-in data/emoji --out docs/emoji

Distances are Fréchet distances between Gaussians fitted to features of EfficientNet-lite0: the 112
channels after the last block of stride 16, averaged over positions of images resized to 224x224.
All sets have as many images as are held out, because the distance depends on the number; the
samples have their classes.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from scoring import images_of

import utils
from sundae.codec.interface import Codec
from sundae.codec_training.dataset import ImageDataset, split_images
from sundae.codec_training.perceptual import load_perceptual
from sundae.common.errors import UserError
from sundae.common.files import write_text
from sundae.common.images import save_grid
from sundae.common.locking import output_folder
from sundae.evaluation.frechet import frechet_distance
from sundae.evaluation.reconstruction import reconstruct
from sundae.features.loading import load_features
from sundae.sampling.sampler import BaseSampler, sample_seeds

BATCH = 32


def parse_args() -> argparse.Namespace:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    flag = parser.add_argument
    flag("--resume", type=Path, metavar="RUN", help="the bundled emoji model unless given")
    flag("--dataset-in", type=Path, required=True, metavar="DIR", help="the images, as classes")
    flag("--eval-fraction", type=float, default=0.1, help="share held out in training (0.1)")
    flag("--out", type=Path, required=True, metavar="DIR", help="folder for images and JSON")
    flag("--shown", type=int, default=24, metavar="N", help="images in each grid (24)")
    utils.add_common_flags(parser, "--quiet")
    utils.add_common_flags(parser, "--seed", default=0)
    return parser.parse_args()


def draw(
    sampler: BaseSampler, classes: Tensor | None, count: int, seed: int, quiet: bool
) -> Tensor:
    """The first samples of a seed, as sample.py makes them: (count, 3, H, W)."""
    states = sampler.refine_tokens(sample_seeds(seed, count), classes, batch_size=BATCH)
    made = [state.pixels() for state in tqdm(states, disable=quiet or None) if state.is_final]
    return torch.cat(made)


def score_codec(codec: Codec, held_out: ImageDataset) -> tuple[dict[str, Any], Tensor]:
    """Scores of the codec on held-out images, and their reconstructions (N, 3, H, W)."""
    report = reconstruct(codec, held_out.paths, size=held_out.size, batch_size=BATCH)
    originals = images_of(held_out)
    made = torch.cat([codec.decode(codec.encode(part)) for part in originals.split(BATCH)])
    distance = load_perceptual("efficientnet-lite0")
    with torch.no_grad():
        distances = [
            float(distance(a * 2 - 1, b * 2 - 1)) * len(a)
            for a, b in zip(made.split(BATCH), originals.split(BATCH), strict=True)
        ]
    scores = {
        "images": report.num_images,
        "psnr_db": report.psnr,
        "ssim": report.ssim,
        "feature_distance": sum(distances) / len(originals),
        "codes_used": report.codes_used / codec.codebook_size,
        "perplexity": report.perplexity,
    }
    return scores, made


def save_pairs(above: Tensor, below: Tensor, path: Path) -> None:
    """A grid in which images (N, 3, H, W) stand beside their counterparts."""
    pairs = [torch.stack(pair) for pair in zip(above, below, strict=True)]
    save_grid(torch.cat(pairs), path, columns=8, scale=2)


def main() -> None:
    """Scores what the flags say, into an empty folder."""
    args = parse_args()
    with output_folder(args.out, args.out.parent, args.out.name):
        score(args)


def score(args: argparse.Namespace) -> None:
    """Write images and figures into the folder, and print the figures."""
    sampler = BaseSampler.from_pretrained(args.resume, device="cpu")
    features = load_features("efficientnet-lite0", sampler.device)
    codec = sampler.codec
    size = sampler.grid[0] * codec.factor
    paths = split_images(args.dataset_in, args.eval_fraction)
    train, held_out = (ImageDataset(side, size, cache=True) for side in paths)
    count, classes = len(held_out), None
    if sampler.class_names:
        names = [path.relative_to(args.dataset_in).parts[0] for path in held_out.paths]
        classes = sampler.class_rows(names, count)
    if count > len(train):
        raise UserError(f"{count} images are held out and {len(train)} are not; hold out fewer")

    scores, reconstructions = score_codec(codec, held_out)
    originals = images_of(held_out)
    shown = min(args.shown, count)
    chosen = [i * count // shown for i in range(shown)]  # evenly over all
    save_pairs(originals[chosen], reconstructions[chosen], args.out / "reconstructions.png")

    everything = images_of(train)
    samples = draw(sampler, classes, count, args.seed, args.quiet)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(args.seed))
    sets = {
        "training images": everything[order[:count]],
        "reconstructions of held-out images": reconstructions,
        "samples": samples,
    }
    known, target = features(everything).layout, features(originals)
    seen = {name: features(images) for name, images in sets.items()}
    distances = {
        name: frechet_distance(found.pooled, target.pooled) for name, found in seen.items()
    }

    of_samples = (seen["samples"].layout @ known.T).max(1)
    of_held_out = (target.layout @ known.T).max(1)
    in_turn = sampler.class_rows(None, args.shown)
    first = draw(sampler, in_turn, args.shown, args.seed, args.quiet)
    nearest = (features(first).layout @ known.T).argmax(1)
    save_pairs(first, everything[torch.from_numpy(nearest)], args.out / "nearest.png")
    assert sampler.checkpoint is not None
    results = {
        "codec, held-out images": scores,
        "Fréchet distance to held-out images": distances,
        "cosine to the nearest training image, median": {
            "samples": float(np.median(of_samples)),
            "held-out images": float(np.median(of_held_out)),
        },
        "protocol": {
            "images of a set": count, "seed": args.seed, "step": sampler.checkpoint.info.step,
        },
    }  # fmt: skip
    text = json.dumps(results, indent=2, ensure_ascii=False)
    write_text(args.out / "figures.json", text + "\n")
    print(text)
    print(f"images and figures are in {args.out}")


if __name__ == "__main__":
    utils.run_cli(main)
