"""Shows what the unlabelled losses of a run see, from its own data: views, predictions, negatives of an anchor.

python -m pc2seg_jax.show --workdir=runs/first --output=sheet.png [--step=latest] [--batch=0] [--anchor=ROW,COLUMN]

Bright cells are likely to be drawn as negatives of the anchor (the orange square), red dots were. The network is that
of the weak view, the teacher where the run keeps one, as in evaluation: no dropout, running statistics.
"""

from absl import flags

from pc2seg_jax import cli
from pc2seg_jax.errors import UserError
from pc2seg_jax.files import local_path, path_of

_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "The sheet, a .png file.", required=True)
_STEP = flags.DEFINE_string("step", "latest", "Which checkpoint: a step, best or latest.")
_BATCH = flags.DEFINE_integer("batch", 0, "The training step whose batch is shown, from 0.", lower_bound=0)
_ANCHOR = flags.DEFINE_list(
    "anchor", [], "Row and column of the anchor in pixels of the first crop; empty: its middle."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing sheet.")


def _anchor() -> tuple[int, int] | None:
    if not _ANCHOR.value:
        return None
    if len(_ANCHOR.value) != 2 or not all(word.strip().isdecimal() for word in _ANCHOR.value):
        raise UserError(f"--anchor={','.join(_ANCHOR.value)} is not of the form ROW,COLUMN, e.g. --anchor=48,48")
    return int(_ANCHOR.value[0]), int(_ANCHOR.value[1])


def main(argv: list[str]) -> None:
    del argv
    from pc2seg_jax import contact_sheet, loss_pictures, restoring

    output, anchor = local_path("--output", _OUTPUT.value), _anchor()
    contact_sheet.check_output(output, _OVERWRITE.value)
    run = restoring.restore(path_of(_WORKDIR.value), _STEP.value)
    print(loss_pictures.write(run, output, batch=_BATCH.value, anchor=anchor))
    print(f"wrote {output}")


if __name__ == "__main__":
    cli.run(main)
