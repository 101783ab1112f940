"""Writes one HTML file that compares runs: numbers, learning curves and predictions. It opens without a network.

python -m pc2seg_jax.report --runs=runs/a,runs/b --output=report.html [--images=8]
"""

from absl import flags

from pc2seg_jax import cli
from pc2seg_jax.files import local_path, path_of

_RUNS = flags.DEFINE_list("runs", None, "Folders of runs, separated by commas.", required=True)
_OUTPUT = flags.DEFINE_string(
    "output", None, "The file to write, ending in .html; replaced if it exists.", required=True
)
_IMAGES = flags.DEFINE_integer("images", 8, "How many val images to show.", lower_bound=0)


def main(argv: list[str]) -> None:
    del argv
    from pc2seg_jax import report_page

    output = local_path("--output", _OUTPUT.value)
    print(report_page.write_report([path_of(run) for run in _RUNS.value], output, _IMAGES.value))
    print(f"wrote {output.resolve()}")


if __name__ == "__main__":
    cli.run(main)
