"""Looks into the data before a run: what is there, what looks wrong, what the network sees, how fast it comes.

python -m pc2seg_jax.check_data --config=configs/folder.py:small --config.data.root=FOLDER --output=sheet.png
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from pc2seg_jax import cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/; keys are set with --config.key=value.")
_OUTPUT = flags.DEFINE_string("output", None, "A PNG for the contact sheet of the first batch; none is drawn without.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an --output that exists already.")
_IMAGES = flags.DEFINE_integer("images", 500, "Images to open of each list, evenly spaced; 0: all.")
_SECONDS = flags.DEFINE_float("seconds", 5.0, "Length of each measurement of speed; 0: none.")
_DEVICE_RATE = flags.DEFINE_float(
    "device_rate", 0.0, "Images per second that all devices together can train on, e.g. of benchmarks/step.py."
)
flags.mark_flag_as_required("config")


def main(argv: list[str]) -> None:
    del argv
    from pc2seg_jax import build, contact_sheet, data_report, training
    from pc2seg_jax.validation import validate

    config, output = _CONFIG.value, _OUTPUT.value and pathlib.Path(_OUTPUT.value)
    data_report.check_flags(_IMAGES.value, _SECONDS.value, _DEVICE_RATE.value)
    validate(config, build.CHOICES)
    if output:
        contact_sheet.check_output(output, _OVERWRITE.value)
    dataset = build.build_dataset(config)
    info = training.describe_dataset(config, dataset)
    crop_size = tuple(config.augment.crop_size)
    contents = []
    for role in data_report.ROLES:
        source = getattr(dataset, role)
        contents.append(data_report.look_into(source, role, _IMAGES.value))
        print(data_report.describe(contents[-1], source, info.splits[role].sha256, crop_size))
    print(data_report.class_table(contents, dataset))
    problems = data_report.warnings(contents, dataset, crop_size)
    print("\n".join(f"warning: {problem}" for problem in problems) or "nothing looks wrong")
    if output:
        contact_sheet.write_sheet(config, dataset, output, overwrite=_OVERWRITE.value)
        print(f"wrote {output}")
    if _SECONDS.value:
        print(data_report.speed_text(data_report.measure_rates(config, dataset, _SECONDS.value), _DEVICE_RATE.value))


if __name__ == "__main__":
    cli.run(main)
