"""Writes a trained model for other programs: StableHLO, ONNX, TensorFlow's SavedModel (docs/export.md).

python -m pc2seg_jax.export --workdir=runs/first --output=FOLDER [--step=N|best|latest] [--network=student|teacher]
    [--formats=stablehlo,onnx,saved_model] [--weights=inside|beside] [--overwrite]

Every format is run and compared with the checkpoint before anything is put into the folder.
"""

from absl import flags

from pc2seg_jax import cli
from pc2seg_jax.errors import UserError
from pc2seg_jax.files import local_path, path_of

_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write: new or empty.", required=True)
_STEP = flags.DEFINE_string("step", "latest", "Which checkpoint: a step, best or latest.")
_NETWORK = flags.DEFINE_enum("network", "student", ["student", "teacher"], "The network, or its moving average.")
_FORMATS = flags.DEFINE_list("formats", "stablehlo,onnx,saved_model", "What to write.")
_WEIGHTS = flags.DEFINE_enum(
    "weights", "inside", ["inside", "beside"], "Where the weights of the StableHLO program are: beside is weights.npz."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an earlier export.")


def main(argv: list[str]) -> None:
    del argv
    from pc2seg_jax import exporting, restoring

    output = local_path("--output", _OUTPUT.value)
    if _WEIGHTS.value == "beside" and "stablehlo" not in _FORMATS.value:
        raise UserError("--weights=beside is for the StableHLO program: add stablehlo to --formats, or leave it out")
    # Before the checkpoint is read: what can be said at once is said at once.
    exporting.check_output(output, overwrite=_OVERWRITE.value)
    exporting.check_packages(_FORMATS.value)
    run = restoring.restore(path_of(_WORKDIR.value), _STEP.value)
    differences = exporting.export_run(
        run,
        output,
        which=_NETWORK.value,
        formats=_FORMATS.value,
        weights=_WEIGHTS.value,
        overwrite=_OVERWRITE.value,
    )
    sizes = ", ".join(f"{b} x {h} x {w}" for b, h, w in exporting.SIZES)
    print(f"wrote {', '.join(differences)} of step {run.step} ({_NETWORK.value}) to {output}, computing in float32")
    print(f"largest difference from the checkpoint's probabilities (images of {sizes}; at most 1e-04 is accepted):")
    for name, difference in differences.items():
        print(f"  {name:12s} {difference:.1e}")


if __name__ == "__main__":
    cli.run(main)
