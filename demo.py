"""Train on handwritten digits, sample 500 and score them with a classifier: `make demo`."""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

from sundae.common.errors import UserError
from sundae.evaluation.diversity import class_diversity, pixel_distance
from sundae.evaluation.image_sets import images_of_folder
from sundae.evaluation.label_reader import LabelledImages, fitted_reader
from sundae.evaluation.label_table import class_labels
from sundae.evaluation.real_images import data_of_run
from sundae.prior.run import list_checkpoints
from sundae.sampling.output import prepare_out_dir, sample_path, write_samples
from sundae.sampling.sampler import BaseSampler
from utils import run_cli, say

CONFIG, RUN = Path("config/digits/demo.toml"), Path("exp/digits-demo")
SAMPLES = Path("samples/demo")
COUNT = 500


def train(run: Path) -> None:
    """Run train.py, as the user would type it; a finished run stays as it is."""
    if list_checkpoints(run):
        flags = ["--resume", str(run)]
    else:
        flags = ["--cfg-path", str(CONFIG), "--seed", "0", "--run-dir", str(run)]
    say(f"$ python train.py {' '.join(flags)}")
    status = subprocess.run([sys.executable, "train.py", *flags]).returncode
    if status:
        raise UserError(f"train.py ended with status {status}; run `make demo` again to go on")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--run-dir", type=Path, default=RUN, help=f"folder of the run (default: {RUN})"
    )
    parser.add_argument(
        "--out-dir", type=Path, default=SAMPLES, help=f"folder of the samples (default: {SAMPLES})"
    )
    args = parser.parse_args()
    train(args.run_dir)
    sampler = BaseSampler.from_pretrained(args.run_dir)
    prepare_out_dir(args.out_dir, COUNT, 0, overwrite=True)
    grid = write_samples(sampler.refine(COUNT, seed=0, batch_size=250), args.out_dir, COUNT)
    real, targets = data_of_run(sampler.cfg), np.arange(COUNT) % sampler.cfg.net.num_classes
    assert real.training is not None and real.training.labels is not None
    training, held_out = LabelledImages.of(real.training), LabelledImages.of(real.reference)
    files = [sample_path(args.out_dir, number) for number in range(COUNT)]
    images = images_of_folder(args.out_dir, None, "samples", files).pixels()
    reader = fitted_reader(training, held_out, quiet=False)
    assert reader is not None
    accuracy = reader.share_right(LabelledImages(images, class_labels(targets)))
    say(f"accuracy of a classifier fitted on the real digits: {accuracy:.3f} on {COUNT} samples, "
        f"{reader.accuracy['class']:.3f} on held-out digits")  # fmt: skip
    spread, real_spread = (
        class_diversity(x.__getitem__, labels, pixel_distance, pairs=1000)
        for x, labels in ((images, targets), (training.images, real.training.labels))
    )
    say(f"samples of a class differ {spread / real_spread:.2f} times as much as real digits do")
    say(f"look at them: {grid}; curves: {args.run_dir}/curves.png")


if __name__ == "__main__":
    run_cli(main)
