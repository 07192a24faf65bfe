"""Repaint images with a trained prior: holes, margins around them, or variations.

Each image is scaled until it just covers what the prior was trained on, and its centre is cut out;
a mask goes the same way. --canvas and --whole keep more of an image, by more windows.
"""

import argparse
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
from tqdm import tqdm

import utils
from sundae.common.errors import UserError
from sundae.common.locking import output_folder
from sundae.config.flags import add_flags, values_of
from sundae.editing.files import name_images, prepare_out_dir, read_edits, write_samples
from sundae.editing.masks import MASK_KINDS, mask_kind, read_mask
from sundae.editing.request import EditRequest, parse_margins
from sundae.editing.sampler import Sampler
from sundae.sampling.canvas import parse_canvas

# The flags of which one says what to repaint.
EDITS = ("--inpaint-strategy", "--mask", "--outpaint", "--image-to-image")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    utils.add_common_flags(parser)
    flag = parser.add_argument
    flag("images", type=Path, metavar="IMG_OR_DIR", help="an image, or a folder of images")
    flag("--nb-inpaint", type=int, default=8, metavar="N", help="images of a folder, the first "
         "in natural order (default: 8)")  # fmt: skip
    flag("--nb-samples", type=int, default=4, metavar="N", help="samples per image (default: 4)")
    flag("--batch-size", type=int, default=16, metavar="N", help="samples at a time (default: 16)")
    flag("--out-dir", type=Path, metavar="DIR", help="receives a folder of PNGs and a grid for "
         "each image (default: inpainted/NAME_TIME)")  # fmt: skip
    flag("--overwrite", action="store_true", help="replace files of the same names")
    flag("--class", dest="classes", action="append", metavar="NAME", help="a class by name or "
         "number, repeatable; by default the null class, or all in turn where none is")  # fmt: skip
    flag("--canvas", metavar="HxW", help="scale and cut each image to this instead, in tokens "
         "(32x64) or pixels (1024x2048px)")  # fmt: skip
    flag("--whole", action="store_true", help="keep all of each image, on a canvas of its "
         "proportions")  # fmt: skip

    edit = parser.add_argument_group("what to repaint (one of these; the classic hole by default)")
    edit.add_argument("--inpaint-strategy", metavar="KIND", help="a hole: " + ", ".join(MASK_KINDS))
    edit.add_argument("--mask", type=Path, metavar="FILE", help="your own hole: white (grey 128 of "
                      "255 or lighter) is repainted; a mask is stretched to the image's size, and "
                      "each pixel that white touches is masked")  # fmt: skip
    edit.add_argument("--outpaint", metavar="LEFT,RIGHT,TOP,BOTTOM", help="pixels to add at each "
                      "side, after the image is scaled: 0,128,0,0")  # fmt: skip
    edit.add_argument("--image-to-image", type=float, metavar="STRENGTH", help="start from the "
                      "image with this fraction of its tokens drawn anew, 0 to 1")  # fmt: skip
    edit.add_argument("--no-composite", action="store_true", help="show the decoded samples, "
                      "without putting the known pixels back")  # fmt: skip
    edit.add_argument("--feather", type=int, metavar="N", help="pixels within the hole that are "
                      "toned to meet its edge (default: half a patch)")  # fmt: skip
    for kind, sizes in MASK_KINDS.items():
        group = parser.add_argument_group(f"sizes of --inpaint-strategy {kind}")
        add_flags(group, sizes)
    utils.add_sampling_flags(parser)
    flag("--no-tqdm", action="store_true", help="no progress bar")
    return parser.parse_args()


def parse_edit(args: argparse.Namespace) -> EditRequest:
    """What the flags request, but for the canvas."""
    given = [name for name in EDITS if getattr(args, name[2:].replace("-", "_")) is not None]
    if len(given) > 1:
        raise UserError(f"{given[0]} and {given[1]} cannot be combined; choose one of them")
    if args.image_to_image is not None and (args.no_composite or args.feather is not None):
        flag = "--no-composite" if args.no_composite else "--feather"
        raise UserError(f"{flag} is about the edge of a hole, --image-to-image has none; drop one")
    kind = args.inpaint_strategy or (None if given else "classic")
    sizes = [values_of(args, sizes).items() for sizes in MASK_KINDS.values()]
    mask = mask_kind(kind, dict(chain(*sizes)))
    return EditRequest(
        mask=mask if args.mask is None else read_mask(args.mask),
        outpaint=args.outpaint and parse_margins(args.outpaint),
        strength=args.image_to_image,
        composite=not args.no_composite,
        feather=args.feather,
        fit="whole" if args.whole else "crop",
    )


def main() -> None:
    args = parse_args()
    count = args.nb_samples
    if min(args.nb_inpaint, count, args.batch_size) < 1:
        raise UserError("--nb-inpaint, --nb-samples and --batch-size must be at least 1")
    request = parse_edit(args)
    images = name_images(args.images, args.nb_inpaint)
    device = utils.choose_device(args.no_cuda, args.quiet)
    sampler = Sampler.from_pretrained(**utils.sampler_options(args, device))
    if args.canvas:
        request = replace(request, canvas=parse_canvas(args.canvas, sampler.codec.factor))
    seed, sampling = utils.seed_everything(args.seed), sampler.cfg.sampling
    sampler.class_rows(args.classes, count, null_default=True, guided=sampling.is_guided)
    edits, unreadable = read_edits(
        images,
        lambda image, number: sampler.prepare_edit(image, request, seed, first=number * count),
    )
    with output_folder(args.out_dir, Path("inpainted"), sampler.cfg.trainer.exp_name) as out_dir:
        prepare_out_dir(out_dir, list(edits), count, overwrite=args.overwrite)
        if request.canvas is None and request.outpaint is None and request.fit == "crop":
            sampler.compile_for(len(edits) * count, min(count, args.batch_size))
        bar = tqdm(edits.items(), unit="image", disable=args.quiet or args.no_tqdm or None)
        for number, (name, edit) in enumerate(bar):
            states = sampler.refine_edit(edit, count, classes=args.classes, seed=seed,
                first=number * count, batch_size=args.batch_size)  # fmt: skip
            samples = []
            for state in states:
                bar.set_postfix(step=state.step, running=state.num_running)
                if state.is_final:
                    samples.append(state.pixels())
            write_samples(out_dir / name, torch.cat(samples), edit, sampler.codec)
    for error in unreadable:
        utils.say(f"skipped {error}")
    utils.say(f"{count} samples of each of {len(edits)} images in {out_dir} "
        f"(step {sampler.step}, seed {seed}, "
        f"strategy {sampling.resolved_strategy})")  # fmt: skip


if __name__ == "__main__":
    utils.run_cli(main)
