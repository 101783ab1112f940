"""Writes one HTML file about a run, or comparing several: numbers, curves, pictures. It opens without a network.

python -m pc2seg_jax.report --runs=runs/a                                        # writes runs/a/report.html
python -m pc2seg_jax.report --runs=runs/a,runs/b --output=report.html [--images=8]
"""

from absl import flags

from pc2seg_jax import cli
from pc2seg_jax.files import is_local, local_path, path_of

_RUNS = flags.DEFINE_list("runs", None, "Folders of runs, separated by commas.", required=True)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "The file to write, ending in .html; replaced if it exists. Of a single run by default report.html in its folder.",
)
_IMAGES = flags.DEFINE_integer(
    "images",
    8,
    "How many val images, evenly spread, to show; half as many of the best, the worst, the most different. 0: none.",
    lower_bound=0,
)


def main(argv: list[str]) -> None:
    del argv
    from pc2seg_jax import report_page

    output = None if _OUTPUT.value is None else local_path("--output", _OUTPUT.value)
    written, table = report_page.write_report([path_of(run) for run in _RUNS.value], output, _IMAGES.value)
    print(table)
    print(f"wrote {written.resolve() if is_local(written) else written}")


if __name__ == "__main__":
    cli.run(main)
