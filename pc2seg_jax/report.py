"""Writes one HTML file that compares runs: numbers, learning curves and predictions. It opens without a network.

python -m pc2seg_jax.report --runs=runs/a,runs/b --output=report.html [--images=8]
"""

import pathlib

from absl import flags

from pc2seg_jax import cli

_RUNS = flags.DEFINE_list("runs", None, "Folders of runs, separated by commas.", required=True)
_OUTPUT = flags.DEFINE_string(
    "output", None, "The file to write, ending in .html; replaced if it exists.", required=True
)
_IMAGES = flags.DEFINE_integer("images", 8, "How many val images to show.", lower_bound=0)


def main(argv: list[str]) -> None:
    del argv
    from pc2seg_jax import report_page

    print(
        report_page.write_report([pathlib.Path(run) for run in _RUNS.value], pathlib.Path(_OUTPUT.value), _IMAGES.value)
    )
    print(f"wrote {pathlib.Path(_OUTPUT.value).resolve()}")


if __name__ == "__main__":
    cli.run(main)
