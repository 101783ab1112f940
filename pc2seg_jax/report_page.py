"""The report as one self-contained HTML page: no scripts, nothing fetched, every value escaped."""

import pc2seg_jax
from pc2seg_jax import comparison, report_curves, report_tables, reporting
from pc2seg_jax.errors import UserError
from pc2seg_jax.files import AnyPath
from pc2seg_jax.report_gallery import Negatives, draw_negatives, negatives_section, pictures_section
from pc2seg_jax.report_markup import text
from pc2seg_jax.report_style import STYLE
from pc2seg_jax.reporting import Picture, Record

_SIDES = (384, 288, 216, 160, 112)  # pixels of the longer side of an embedded picture: the first with which all fit
_LARGEST = 4_500_000  # bytes of a page
_PRINTED = ("run", "labelled images", "steps", "images per step", "val mIoU %", "95 % interval", "training minutes")


def write_report(workdirs: list[AnyPath], output: AnyPath | None, images: int) -> tuple[AnyPath, str]:
    """Writes the report of runs, and returns its path and its main numbers as a text table.

    Args:
      output: the file; None: report.html in the folder of the run, of which there must be one.
      images: how many val images are spread evenly, see `reporting.choose_images`; 0: no picture, and no data is read.

    Raises:
      UserError: when `output` cannot be the file, or the runs cannot be compared (see `reporting.read_records`).
    """
    if not workdirs:
        raise UserError("--runs is empty: name the folders of one or more runs, separated by commas")
    if output is None and len(workdirs) > 1:
        raise UserError(f"--output is missing: name the file for the comparison of the {len(workdirs)} runs")
    output = workdirs[0] / "report.html" if output is None else output
    if output.suffix != ".html" or output.is_dir():
        raise UserError(f"--output={output} is not a file that ends in .html: name one, e.g. report.html")
    records = reporting.read_records(workdirs)
    pictures = reporting.make_pictures(records, images)
    negatives = {record.name: draw_negatives(record) for record in records if images and not record.supervised}
    page = smallest(records, pictures, negatives)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(page)
    rows = [reporting.headline(record) for record in records]
    return output, comparison.text_table([{title: row[title] for title in _PRINTED} for row in rows])


def smallest(records: list[Record], pictures: list[Picture], negatives: dict[str, Negatives | str]) -> bytes:
    """The page with pictures as large as `_LARGEST` bytes allow, at least of the last of `_SIDES`; args as `render`."""
    for side in _SIDES:
        page = render(records, pictures, negatives, side=side).encode()
        if len(page) <= _LARGEST:
            break
    return page


def render(
    records: list[Record],
    pictures: list[Picture],
    negatives: dict[str, Negatives | str] | None = None,
    *,
    side: int = _SIDES[0],
) -> str:
    """The whole page.

    Args:
      negatives: by run, of `draw_negatives`. side: pixels of the longer side of an embedded picture.
    """
    names = [record.name for record in records]
    title = "Segmentation runs: " + ", ".join(names) if len(names) > 1 else f"Segmentation run: {names[0]}"
    val = records[0].run.info.splits["val"]
    intro = f"Evaluated on {val.count} images of {val.name}; numbers are those of each run's latest checkpoint."
    sections = {
        "Results": report_tables.results(records),
        "Classes": report_tables.classes(records),
        "Learning curves": report_curves.learning(records),
        "Predictions": pictures_section(records, pictures, side),
        "Confusion": report_curves.confusion(records),
        "Calibration": report_curves.calibration(records),
        "Pseudo-labels": report_curves.pseudo_labels(records),
        "Drawn negatives": negatives_section(records, negatives or {}, side),
        "Configuration": report_tables.configurations(records),
        "Protocol and data": report_tables.protocol(records),
        "Versions and hardware": report_tables.machines(records),
    }
    sections = {name: body for name, body in sections.items() if body}
    links = "".join(f'<a href="#{_anchor(name)}">{name}</a>' for name in sections)
    bodies = (f'<section id="{_anchor(name)}"><h2>{name}</h2>{body}</section>' for name, body in sections.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        f'<h1>{text(title)}</h1><p class="soft">{text(intro)}</p><nav>{links}</nav>\n'
        + "\n".join(bodies)
        + f'\n<p class="soft end">Written by pc2seg_jax {pc2seg_jax.__version__}.</p>\n</body></html>\n'
    )


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")
