"""Figures of samples, of a prior or of a codec beside real images: python evaluate.py RUN IMAGES"""

import argparse
import shlex
import sys
from pathlib import Path

from sundae.common.errors import UserError
from sundae.common.files import make_folder
from sundae.common.locking import output_folder
from sundae.config.flags import add_flags
from sundae.config.sections import VQGANConfig
from sundae.evaluation.evaluation import Settings, evaluate, open_lpips
from sundae.evaluation.image_sets import ImageSet
from sundae.evaluation.instrument import FIGURES
from sundae.evaluation.protocol import protocol
from sundae.evaluation.real_images import SIDES, RealImages
from sundae.evaluation.report import JSON_NAME, left_out, legend, table, write_report
from sundae.evaluation.statistics_file import RealFeatures, save_statistics
from sundae.evaluation.subject import Subject, open_reference
from sundae.evaluation.sweep_report import SWEPT, sweep_figures
from sundae.features.loading import FEATURES, load_features
from utils import (
    add_common_flags,
    add_sampling_flags,
    choose_device,
    run_cli,
    sampler_options,
    say,
    seed_everything,
    seed_number,
)


def image_size(text: str) -> tuple[int, int]:
    """argparse type: N or HxW in pixels."""
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"expected pixels, as 256 or 256x512, got {text}")
    return int(sides[0]), int(sides[-1])


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    flag = parser.add_argument
    flag("samples", type=Path, metavar="SAMPLES", help="a folder of images, a run, checkpoint or "
         "released folder to sample from, a VQ-GAN, or saved statistics")  # fmt: skip
    flag("reference", type=Path, nargs="?", metavar="REFERENCE", help="real images: a folder, "
         "grey levels as tokens, or saved statistics (default: the data of the run)")  # fmt: skip
    flag("--features", choices=FEATURES, default="efficientnet-lite0", help="what distances are "
         "computed of (default: efficientnet-lite0)")  # fmt: skip
    flag("--figures", nargs="+", choices=FIGURES, metavar="NAME", help="which figures: "
         f"{', '.join(FIGURES)} (default: all that can be computed)")  # fmt: skip
    flag("--nb-samples", type=int, metavar="N", help="number of samples (default: that of the "
         "reference images, at most 1,000)")  # fmt: skip
    flag("--batch-size", type=int, default=64, metavar="N", help="samples at a time (default: 64)")
    flag("--classes", choices=("reference", "turn"), default="reference", help="classes of the "
         "samples: those of the reference images, or all in turn (default: reference)")  # fmt: skip
    flag("--sweep", action="append", metavar="KEY=V,V", help="score several values of a key of "
         "[sampling], as steps=4,8,16; repeatable, all combinations are drawn")  # fmt: skip
    flag("--seeds", type=seed_number, nargs="+", metavar="N", help="seeds of each point of a sweep")
    group = parser.add_argument_group("the real images")
    group.add_argument("--split", choices=SIDES, default="held-out", help="which of them are the "
                       "reference (default: held-out)")  # fmt: skip
    group.add_argument("--eval-fraction", type=float, metavar="X", help="share that is held out, "
                       "by file names (default: as in the training)")  # fmt: skip
    group.add_argument("--training", type=Path, metavar="DIR", help="folder of the training "
                       "images, where REFERENCE holds others only")  # fmt: skip
    group.add_argument("--pool", type=int, default=10_000, metavar="N", help="training images at "
                       "most among which the nearest is found (default: 10,000)")  # fmt: skip
    group.add_argument("--size", type=image_size, metavar="N", help="scale and crop the images of "
                       "a folder to N or HxW pixels")  # fmt: skip
    group.add_argument("--save-statistics", type=Path, metavar="FILE", help="write the features of "
                       "the real images, to give as REFERENCE later: NAME.safetensors")  # fmt: skip
    flag("--config", type=Path, metavar="FILE", help="YAML or JSON of a VQ-GAN")
    add_flags(parser, VQGANConfig, "input_range", "distance")
    flag(
        "--out-dir", type=Path, metavar="DIR", help="folder (default: samples/evaluation-NAME_TIME)"
    )
    flag("--overwrite", action="store_true", help="replace the evaluation in the folder")
    add_common_flags(parser, "--cfg-path", "--no-cuda", "--precision", "--quiet", "--set")
    add_common_flags(parser, "--seed", default=0)
    add_sampling_flags(parser, resume=False)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if (
        args.batch_size < 1
        or args.pool < 1
        or (args.nb_samples is not None and args.nb_samples < 2)
    ):
        raise UserError("--batch-size and --pool must be at least 1, --nb-samples at least 2")
    if args.seeds and not args.sweep:
        raise UserError("--seeds is for --sweep; give one --seed")
    if args.save_statistics and args.sweep:
        raise UserError("--save-statistics is not for --sweep; save them by a call of its own")
    seed_everything(args.seed)
    report = args.out_dir and not args.sweep and args.out_dir / JSON_NAME
    for path in filter(None, (args.save_statistics, report)):
        if path.exists() and not args.overwrite:
            raise UserError(f"{path} exists; choose another place or pass --overwrite")
    if args.save_statistics:
        make_folder(args.save_statistics.parent)
    device, args.resume = choose_device(args.no_cuda, args.quiet), args.samples
    network = load_features(args.features, device, quiet=args.quiet)
    figures = args.figures or (SWEPT if args.sweep else None)
    lpips, notes = open_lpips(figures, device, quiet=args.quiet)
    codec = {"config": args.config, "device": device, "precision": args.precision,
             "input_range": args.input_range, "distance": args.distance}  # fmt: skip
    subject = Subject.open(args.samples, network, prior=sampler_options(args, device), codec=codec,
                           size=args.size)  # fmt: skip
    only_save = args.save_statistics and not args.reference and isinstance(subject.images, ImageSet)
    real = open_reference(
        args.samples if only_save else args.reference, subject, network, side=args.split,
        eval_fraction=args.eval_fraction, training=args.training,
    )  # fmt: skip
    settings = Settings(
        num_samples=args.nb_samples, seed=args.seed, batch_size=args.batch_size,
        class_order=args.classes, pool=args.pool, figures=figures or FIGURES, lpips=lpips,
        whole=args.save_statistics is not None, quiet=args.quiet,
    )  # fmt: skip
    if only_save and isinstance(real, RealImages):
        saved = RealFeatures.of(real, network, pool=args.pool, quiet=args.quiet)
        save_statistics(args.save_statistics, saved, network)
        return say(f"features of {len(saved.reference)} images are in {args.save_statistics}")
    command = shlex.join(["python", *sys.argv])
    name = f"{'sweep' if args.sweep else 'evaluation'}-{args.samples.resolve().name}"
    with output_folder(args.out_dir, Path("samples"), name) as folder:
        if args.sweep:
            lines = sweep_figures(
                args.sweep, args.seeds or [args.seed], subject, real, network, settings, folder,
                command=command, overwrite=args.overwrite,
            )  # fmt: skip
        else:
            evaluation = evaluate(subject, real, network, settings)
            notes |= left_out(evaluation, args.figures or ())
            write_report(evaluation, protocol(subject, evaluation, network, settings,
                                              command=command, notes=notes), folder)  # fmt: skip
            lines = [*table(evaluation, network), *legend(evaluation)]
            if args.save_statistics:
                save_statistics(args.save_statistics, evaluation.instrument.real, network)
    for line in (*lines, *(f"left out: {name}: {reason}" for name, reason in notes.items())):
        say(line)
    say(f"figures with their protocol, and images, are in {folder}")


if __name__ == "__main__":
    run_cli(main)
