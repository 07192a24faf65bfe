"""Judges a codec and a prior on pictures they never saw; makes the pictures of the model card.

python benchmarks/pretrained.py --dataset-in data/emoji --out docs/emoji

Distances are Fréchet distances between Gaussians fitted to features of EfficientNet-lite0: the 112
channels after the last block of stride 16, averaged over positions. All sets have as many pictures
as are held out, because the distance depends on the number; the samples have their classes.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

import utils
from sundae.codec.interface import Codec, open_codec
from sundae.codec_training.dataset import ImageDataset, open_images
from sundae.codec_training.perceptual import EfficientNetDistance, load_perceptual
from sundae.common.errors import UserError
from sundae.common.files import write_text
from sundae.common.images import save_grid
from sundae.common.locking import output_folder
from sundae.evaluation.frechet import frechet_distance
from sundae.evaluation.reconstruction import reconstruct
from sundae.prior.checkpoint import Checkpoint
from sundae.prior.pretrained import checkpoint_or_bundled
from sundae.sampling.opening import class_number
from sundae.sampling.prior import Prior, even_classes, sample_seeds

BATCH = 32


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    flag = parser.add_argument
    flag("--resume", type=Path, metavar="RUN", help="the shipped emoji model unless given")
    flag("--dataset-in", type=Path, required=True, metavar="DIR", help="the pictures, as classes")
    flag("--eval-fraction", type=float, default=0.1, help="share held out in training (0.1)")
    flag("--out", type=Path, required=True, metavar="DIR", help="folder for pictures and JSON")
    flag("--shown", type=int, default=24, metavar="N", help="pictures in each grid (24)")
    utils.add_common_flags(parser, "--quiet")
    utils.add_common_flags(parser, "--seed", default=0)
    return parser.parse_args()


def spread(count: int, shown: int) -> list[int]:
    """At most `shown` indices, evenly over 0 .. count-1."""
    return [i * count // min(shown, count) for i in range(min(shown, count))]


def images_of(data: ImageDataset, indices: list[int]) -> Tensor:
    """(N, 3, H, W) float32 in [0, 1]"""
    return data.__getitems__(indices)["images"].contiguous()


class Features:
    """What EfficientNet-lite0 sees in pictures (N, 3, H, W) in [0, 1]."""

    def __init__(self, distance: EfficientNetDistance) -> None:
        self.distance = distance

    @torch.no_grad()
    def maps(self, images: Tensor) -> Tensor:
        """(N, 112, H/16, W/16)"""
        found = [list(self.distance.features(part * 2 - 1))[-1] for part in images.split(BATCH)]
        return torch.cat(found).float()

    def pooled(self, images: Tensor) -> Tensor:
        """(N, 112), for the Fréchet distance."""
        return self.maps(images).mean((2, 3))

    def layout(self, images: Tensor) -> Tensor:
        """(N, 112 * 16), unit length: what is where in 4x4 regions, to find the nearest picture."""
        return F.normalize(F.adaptive_avg_pool2d(self.maps(images), 4).flatten(1), dim=1)


def draw(
    checkpoint: Checkpoint, codec: Codec, classes: Tensor | None, count: int, seed: int, quiet: bool
) -> Tensor:
    """The first samples of a seed, as sample.py makes them: (count, 3, H, W)."""
    cfg = checkpoint.config
    prior = Prior(checkpoint.load_network(), cfg, torch.device("cpu"))
    seeds, made = sample_seeds(seed, count), []
    for start in tqdm(range(0, count, BATCH), unit="batch", disable=quiet or None):
        rows = slice(start, start + BATCH)
        picked = None if classes is None else classes[rows]
        *_, last = prior.refine(seeds[rows], picked, cfg.sampling)
        made.append(codec.decode(prior.grids(last.tokens)))
    return torch.cat(made)


def judge_codec(codec: Codec, held_out: ImageDataset, features: Features) -> dict[str, Any]:
    """Scores of the codec on held-out pictures; reconstructions are under "images"."""
    report = reconstruct(codec, held_out.paths, size=held_out.size, batch_size=BATCH)
    originals = images_of(held_out, list(range(len(held_out))))
    made = torch.cat([codec.decode(codec.encode(part)) for part in originals.split(BATCH)])
    with torch.no_grad():
        distances = [
            float(features.distance(a * 2 - 1, b * 2 - 1)) * len(a)
            for a, b in zip(made.split(BATCH), originals.split(BATCH), strict=True)
        ]
    return {
        "pictures": report.num_images,
        "psnr_db": report.psnr,
        "ssim": report.ssim,
        "feature_distance": sum(distances) / len(originals),
        "codes_used": report.codes_used / report.codebook_size,
        "perplexity": report.perplexity,
        "images": made,
    }


def classes_of(held_out: ImageDataset, root: Path, checkpoint: Checkpoint) -> Tensor | None:
    """(N,) class of each held-out picture, None for a prior without classes."""
    names = checkpoint.info.classes
    if not names:
        return None
    folders = [path.relative_to(root).parts[0] for path in held_out.paths]
    return torch.tensor([class_number(name, names) for name in folders])


def main() -> None:
    args = parse_args()
    with output_folder(args.out, args.out.parent, args.out.name):
        judge(args)


def judge(args: argparse.Namespace) -> None:
    """Write pictures and figures into the folder, and print the figures."""
    checkpoint = checkpoint_or_bundled(args.resume)
    codec = open_codec(checkpoint.config)
    perceptual = load_perceptual("efficientnet-lite0")
    assert isinstance(perceptual, EfficientNetDistance)
    features = Features(perceptual)
    size = checkpoint.config.grid_shape[0] * codec.factor
    train, held_out = open_images(
        args.dataset_in, size=size, load_size=size, eval_fraction=args.eval_fraction, cache=True
    )
    classes, count = classes_of(held_out, args.dataset_in, checkpoint), len(held_out)
    if count > len(train):
        raise UserError(f"{count} pictures are held out and {len(train)} are not; hold out fewer")

    scores = judge_codec(codec, held_out, features)
    reconstructions: Tensor = scores.pop("images")
    originals = images_of(held_out, list(range(count)))
    chosen = spread(count, args.shown)
    rows = [torch.stack(pair) for pair in zip(originals[chosen], reconstructions[chosen])]
    save_grid(torch.cat(rows), args.out / "reconstructions.png", columns=8, scale=2)

    everything = images_of(train, list(range(len(train))))
    samples = draw(checkpoint, codec, classes, count, args.seed, args.quiet)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(args.seed))
    sets = {
        "training pictures": everything[order[:count]],
        "reconstructions of held-out pictures": reconstructions,
        "samples": samples,
    }
    wanted = features.pooled(originals)
    distances = {
        name: frechet_distance(features.pooled(images), wanted) for name, images in sets.items()
    }

    known = features.layout(everything)
    of_samples = (features.layout(samples) @ known.T).max(1)
    of_held_out = (features.layout(originals) @ known.T).max(1)
    first = draw(
        checkpoint, codec,
        even_classes(len(checkpoint.info.classes or [""]), args.shown) if classes is not None
        else None,
        args.shown, args.seed, args.quiet,
    )  # fmt: skip
    nearest = (features.layout(first) @ known.T).argmax(1)
    rows = [torch.stack(pair) for pair in zip(first, everything[nearest])]
    save_grid(torch.cat(rows), args.out / "nearest.png", columns=8, scale=2)
    results = {
        "codec, held-out pictures": scores,
        "Fréchet distance to held-out pictures": distances,
        "cosine to the nearest training picture, median": {
            "samples": float(of_samples.values.median()),
            "held-out pictures": float(of_held_out.values.median()),
        },
        "protocol": {"pictures of a set": count, "seed": args.seed, "step": checkpoint.info.step},
    }
    text = json.dumps(results, indent=2, ensure_ascii=False)
    write_text(args.out / "figures.json", text + "\n")
    print(text)
    print(f"pictures and figures are in {args.out}")


if __name__ == "__main__":
    utils.run_cli(main)
