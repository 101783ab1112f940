"""Evaluations as they are stored, with results that no network had to find."""

import json
import pathlib

import numpy as np

NEW = ("miou_interval", "boundary_miou", "boundary_iou", "calibration", "confusion")


def files(workdir: pathlib.Path, step: int = 6) -> tuple[pathlib.Path, pathlib.Path]:
    """The .json and the .npz of an evaluation on val."""
    return tuple(workdir / "evaluation" / f"{step}_val.{kind}" for kind in ("json", "npz"))


def edit(path: pathlib.Path, change) -> None:
    """`change(stored)` of a JSON file."""
    stored = json.loads(path.read_text())
    change(stored)
    path.write_text(json.dumps(stored))


def add(workdir: pathlib.Path, *, seed: int = 0, images: int = 5) -> None:
    """Adds what newer evaluations hold. Of the images, the one with index 3 is the best and 1 the worst."""
    rng = np.random.default_rng(seed)
    main, beside = files(workdir)

    def change(stored: dict) -> None:
        stored["miou_interval"] = [stored["miou"] - 1.5, stored["miou"] + 2.0]
        stored["boundary_miou"] = 0.5 * stored["miou"]
        stored["boundary_iou"] = {name: value and 0.5 * value for name, value in stored["iou"].items()}
        edges = np.linspace(0, 1, 16).tolist()
        bins = [
            {"low": low, "high": high, "share": 0.1, "confidence": (low + high) / 2, "accuracy": 0.9 * low}
            for low, high in zip(edges, edges[1:], strict=False)
        ]
        for empty in bins[:5]:
            empty.update(share=0.0, confidence=None, accuracy=None)
        stored["calibration"] = {"expected_calibration_error": 7.25, "bins": bins}
        stored["confusion"] = per_image.sum(0).tolist()

    count = len(json.loads(main.read_text())["iou"])
    per_image = rng.integers(1, 50, (images, count, count)).astype(np.int32)
    for image, hits in ((3, 5000), (1, 0)):
        per_image[image, range(count), range(count)] = hits
    edit(main, change)
    np.savez_compressed(beside, ids=np.array([f"val_{i:05d}" for i in range(images)]), network=per_image)
    return per_image


def strip(workdir: pathlib.Path) -> None:
    """Removes what older versions have not stored."""
    for path in (workdir / "evaluation").glob("*.npz"):
        path.unlink()
    for path in (workdir / "evaluation").glob("*.json"):
        edit(path, lambda stored: [stored.pop(name, None) for name in NEW])
    path = workdir / "timings.jsonl"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines() if "started" not in line))
