"""Evaluates a checkpoint of a run; needs only the run's folder and its data. Or compares runs, image by image.

python -m pc2seg_jax.evaluate --workdir=runs/first [--step=N|best|latest] [--split=val]
python -m pc2seg_jax.evaluate --workdir=runs/first --scales=0.5,0.75,1,1.25,1.5,1.75 --flip [--window=513]
python -m pc2seg_jax.evaluate --compare=runs/supervised,runs/pc2seg [--network=teacher] [--output=FILE.json]
python -m pc2seg_jax.evaluate --compare='runs/supervised_*,runs/pc2seg_*'   # methods, each with several seeds

One scale without flip is the paper's protocol. Where the run keeps a moving-average teacher, it is evaluated, too.
"""

import json

from absl import flags

from pc2seg_jax import cli
from pc2seg_jax.errors import UserError
from pc2seg_jax.files import AnyPath, local_path, path_of, replace_text

_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.")
_COMPARE = flags.DEFINE_list(
    "compare",
    None,
    "Folders of runs instead, separated by commas; the first is the base. A pattern such as runs/pc2seg_* is a method, "
    "with runs of several seeds.",
)
_STEP = flags.DEFINE_string("step", "latest", "Which checkpoint: a step, best or latest.")
_SPLIT = flags.DEFINE_enum("split", "val", ["val", "labeled"], "Which images.")
_SCALES = flags.DEFINE_list("scales", ["1"], "Factors of the sides; probabilities are averaged.")
_FLIP = flags.DEFINE_bool("flip", False, "Average with the mirrored image.")
_WINDOW = flags.DEFINE_integer("window", 0, "Side of sliding windows, 16k + 1; 0: whole images.", lower_bound=0)
_NETWORK = flags.DEFINE_enum("network", "student", ["student", "teacher"], "With --compare: whose numbers.")
_OUTPUT = flags.DEFINE_string("output", None, "With --compare: a .json file for the numbers.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "With --compare: replace an existing --output.")
cli.define_process_flags()


@flags.multi_flags_validator(["workdir", "compare"], "name one run, --workdir=DIR, or several, --compare=DIR,DIR")
def _names_runs(values: dict) -> bool:
    return bool(values["workdir"]) != bool(values["compare"])


def _compare(names: list[str], views) -> None:
    """Runs over images, or methods over seeds."""
    from pc2seg_jax import comparison, evaluating, processes, seeds, workdir

    output = local_path("--output", _OUTPUT.value) if _OUTPUT.value else None
    if output and (output.suffix != ".json" or not output.parent.is_dir()):
        raise UserError(f"--output={output} must be a file in an existing folder that ends in .json")
    if output and output.exists() and not _OVERWRITE.value:
        raise UserError(f"{output} exists already: name another --output, or replace it with --overwrite")
    if len(set(names)) < len(names):
        raise UserError(f"--compare={','.join(names)} names a run twice")
    network = {"student": "network"}.get(_NETWORK.value, _NETWORK.value)

    def read(folder: AnyPath) -> comparison.Entry:
        found = evaluating.stored_or_evaluated(folder, _STEP.value, _SPLIT.value, views)
        return comparison.Entry(str(folder), *found, network)

    if any(map(seeds.is_pattern, names)):
        found = {name: seeds.find_runs(name) for name in names}
        methods = [
            seeds.group(name, [(workdir.load(x)[0].seed, read(x)) for x in runs]) for name, runs in found.items()
        ]
        rows = seeds.compare(methods)
        text = seeds.table(rows)
    else:
        rows = comparison.compare([read(path_of(name)) for name in names])
        text = comparison.table(rows)
    if processes.is_lead():
        print(text)
        if output:
            replace_text(output, json.dumps(rows, indent=2) + "\n")
            print(f"wrote {output}")


def main(argv: list[str]) -> None:
    del argv
    cli.join_processes()
    from pc2seg_jax import evaluating, evaluation, inference, processes

    views = inference.parse_views(_SCALES.value, _FLIP.value, _WINDOW.value)
    if _COMPARE.value:
        _compare(_COMPARE.value, views)
        return
    for flag, why in (
        ("output", "the result of one run is stored in its own folder"),
        ("network", "both are evaluated"),
        ("overwrite", "nothing else is written"),
    ):
        if flags.FLAGS[flag].present:
            raise UserError(f"--{flag} is for --compare: {why}")
    result, _, path = evaluating.evaluate_run(path_of(_WORKDIR.value), _STEP.value, _SPLIT.value, views)
    if processes.is_lead():
        print(evaluation.table(result))
        print(f"wrote {path}, and beside it the confusion matrix as a picture")


if __name__ == "__main__":
    cli.run(main)
