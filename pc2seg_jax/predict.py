"""Writes masks for images of any sizes; needs only the run's folder.

python -m pc2seg_jax.predict --workdir=runs/first --images=FOLDER --output=FOLDER [--step=N|best|latest] [--overwrite]
python -m pc2seg_jax.predict --workdir=runs/first --images='photos/*.jpg,more/one.png' --output=FOLDER --probabilities

An image that cannot be decoded is left out and named, and the exit status is then 1.
"""

import sys
import time

import tqdm
from absl import flags

from pc2seg_jax import cli
from pc2seg_jax.files import local_path, path_of

_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.", required=True)
_IMAGES = flags.DEFINE_list("images", None, "Files, folders or quoted patterns, separated by commas.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for masks/, overlays/ and confidence/.", required=True)
_STEP = flags.DEFINE_string("step", "latest", "Which checkpoint: a step, best or latest.")
_NETWORK = flags.DEFINE_enum("network", "student", ["student", "teacher"], "The network, or its moving average.")
_SCALES = flags.DEFINE_list("scales", ["1"], "Factors of the sides; probabilities are averaged.")
_FLIP = flags.DEFINE_bool("flip", False, "Average with the mirrored image.")
_WINDOW = flags.DEFINE_integer(
    "window", 0, "Side of sliding windows, 16k + 1, for images larger than it; 0: 1025 beyond four million pixels.", 0
)
_BATCH = flags.DEFINE_integer("batch_size", 8, "Images of one size at a time.", lower_bound=1)
_PROBABILITIES = flags.DEFINE_bool("probabilities", False, "Write those of all classes, too, as .npz.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace files that exist already.")


def main(argv: list[str]) -> None:
    del argv
    from pc2seg_jax import inference, mask_files, restoring

    views = inference.parse_views(_SCALES.value, _FLIP.value, _WINDOW.value)
    patterns = [str(local_path("--images", pattern)) for pattern in _IMAGES.value]
    output = local_path("--output", _OUTPUT.value)
    run = restoring.restore(path_of(_WORKDIR.value), _STEP.value).with_network(_NETWORK.value)
    begin = time.monotonic()
    count, problems, written = mask_files.predict_photos(
        run,
        patterns,
        output,
        views=views,
        batch_size=_BATCH.value,
        with_probabilities=_PROBABILITIES.value,
        overwrite=_OVERWRITE.value,
    )
    done = sum(1 for _ in tqdm.tqdm(written, total=count, unit="image", disable=not sys.stderr.isatty()))
    speed = done / (time.monotonic() - begin)
    print(
        f"wrote {done} masks to {output / 'masks'} (step {run.step}), {speed:.1f} images/s with compiling and writing"
    )
    if problems:
        for problem in problems.values():
            print(f"left out: {problem}", file=sys.stderr)
        print(f"error: {len(problems)} of {count} images were left out", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
