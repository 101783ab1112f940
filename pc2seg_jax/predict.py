"""Writes masks for a folder of images; needs only the run's folder.

python -m pc2seg_jax.predict --workdir=runs/first --images=FOLDER --output=FOLDER [--step=N|best|latest] [--overwrite]
"""

import sys

import tqdm
from absl import flags

from pc2seg_jax import cli
from pc2seg_jax.files import local_path, path_of

_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.", required=True)
_IMAGES = flags.DEFINE_string("images", None, "Folder of JPEG or PNG images.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for masks/ and overlays/.", required=True)
_STEP = flags.DEFINE_string("step", "latest", "Which checkpoint: a step, best or latest.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace masks that exist already.")


def main(argv: list[str]) -> None:
    del argv
    from pc2seg_jax import prediction, restoring

    run = restoring.restore(path_of(_WORKDIR.value), _STEP.value)
    images, output = local_path("--images", _IMAGES.value), local_path("--output", _OUTPUT.value)
    masks = prediction.predict_folder(run, images, output, overwrite=_OVERWRITE.value)
    count = sum(1 for _ in tqdm.tqdm(masks, total=len(prediction.find_images(images)), disable=not sys.stderr.isatty()))
    print(f"wrote {count} masks to {output / 'masks'} and pictures to {output / 'overlays'} (step {run.step})")


if __name__ == "__main__":
    cli.run(main)
