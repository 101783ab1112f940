"""Speed of the input pipeline per core, beside a PyTorch DataLoader with the same transforms; and its memory.

  python benchmarks/input_pipeline.py                    # 500 x 375 JPEGs, crops of 513 x 513, the paper's augmentation
  python benchmarks/input_pipeline.py --memory=2000      # resident memory over that many batches

Every arm is a process of its own on one and the same core; arms take turns, and the median of the turns is printed. The
other side needs `pip install torch albumentations` and is left out where that is missing. It does its colours on the
crop and on the host. Ours computes the mean of contrast over the whole scaled image, as the paper's code does, and
finishes the strong view on the device: `pairs, finished here` adds that work on this same core, by XLA.
"""

import itertools
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np
from absl import app, flags
from PIL import Image

_ARM = flags.DEFINE_string("arm", None, "Internal: measures one arm in this process.")
_DATA = flags.DEFINE_string("data", None, "Internal: the folder of the images.")
_TURNS = flags.DEFINE_integer("turns", 3, "Measurements of every arm.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 8.0, "Length of a measurement, after a warm-up.", lower_bound=0.1)
_CORE = flags.DEFINE_integer("core", None, "The core to measure on, by default the last one of this process.")
_MEMORY = flags.DEFINE_integer("memory", 0, "Measure memory over this many batches instead.", lower_bound=0)

IMAGES, BATCH = 64, 8
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)


def write_images(folder: pathlib.Path) -> None:
    """Procedural scenes as JPEGs of VOC's size and about its bytes (78 kB), with index PNGs as masks."""
    from pc2seg_jax.data.synthetic import scene

    for i in range(IMAGES):
        image, mask = scene(0, 0, i, 500)
        Image.fromarray(image[:375]).save(folder / f"{i:03d}.jpg", quality=90)
        Image.fromarray(mask[:375]).save(folder / f"{i:03d}.png")


def our_stream(folder: pathlib.Path, *, pairs: bool):
    """Batches of the training pipeline, with one image in work at a time."""
    from pc2seg_jax.data.augment import AugmentParams
    from pc2seg_jax.data.pipeline import labeled_stream, unlabeled_stream
    from pc2seg_jax.data.sources import file_source

    names = [f"{i:03d}" for i in range(IMAGES)]
    images, masks = ([folder / f"{name}.{suffix}" for name in names] for suffix in ("jpg", "png"))
    source = file_source(images, None if pairs else masks, names, sizes=np.tile([375, 500], (IMAGES, 1)))
    stream = unlabeled_stream if pairs else labeled_stream
    settings = {"batch_size": BATCH, "seed": 0, "start_step": 0, "augment": AugmentParams()}
    return stream(source, num_threads=1, prefetch=1, **settings)


def finished(batches):
    """The same with the strong view computed on this core."""
    import jax

    from pc2seg_jax.ops.views import unlabeled_views

    finish = jax.jit(lambda crops: unlabeled_views(crops, mean_pixel=(127.5,) * 3, ignore_id=255))
    for batch in batches:
        yield (jax.block_until_ready(finish(batch)).weak,)


def torch_loader(folder: pathlib.Path, *, pairs: bool, workers: int):
    """The same transforms by OpenCV and albumentations, batched by a PyTorch DataLoader."""
    import albumentations as A
    import cv2
    import torch

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    constant = {"border_mode": cv2.BORDER_CONSTANT, "position": "top_left"}

    def rescale(scale):
        how = cv2.INTER_LINEAR if scale > 1 else cv2.INTER_AREA
        return A.RandomScale(scale_limit=(scale - 1, scale - 1), interpolation=how, p=1)

    geometry = A.Compose(
        [
            A.OneOf([rescale(scale) for scale in SCALES], p=1),
            A.PadIfNeeded(513, 513, fill=127, fill_mask=255, **constant),
            A.RandomCrop(513, 513),
            A.HorizontalFlip(p=0.5),
        ]
    )
    hole = {"num_holes_range": (1, 1), "hole_height_range": (100, 100), "hole_width_range": (100, 100)}
    strong = A.Compose(
        [
            A.ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.25, p=1),
            A.CoarseDropout(fill=127, p=1, **hole),
        ]
    )

    def tensor(image):
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float()

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return 10**9

        def __getitem__(self, index):
            path = folder / f"{index % IMAGES:03d}"
            image = cv2.cvtColor(cv2.imread(f"{path}.jpg"), cv2.COLOR_BGR2RGB)
            if not pairs:
                out = geometry(image=image, mask=np.asarray(Image.open(f"{path}.png")))
                return tensor(out["image"]), torch.from_numpy(out["mask"]).long()
            weak = geometry(image=image, mask=np.ones(image.shape[:2], np.uint8))
            out = strong(image=weak["image"], mask=weak["mask"])
            return tensor(weak["image"]), tensor(out["image"]), torch.from_numpy(out["mask"])

    return iter(torch.utils.data.DataLoader(Images(), batch_size=BATCH, num_workers=workers))


ARMS = {
    "labelled, ours": lambda folder: our_stream(folder, pairs=False),
    "labelled, DataLoader, 1 worker": lambda folder: torch_loader(folder, pairs=False, workers=1),
    "labelled, DataLoader, no worker": lambda folder: torch_loader(folder, pairs=False, workers=0),
    "pairs, ours": lambda folder: our_stream(folder, pairs=True),
    "pairs, ours, finished here": lambda folder: finished(our_stream(folder, pairs=True)),
    "pairs, DataLoader, 1 worker": lambda folder: torch_loader(folder, pairs=True, workers=1),
    "pairs, DataLoader, no worker": lambda folder: torch_loader(folder, pairs=True, workers=0),
}


def measure(arm: str, folder: pathlib.Path) -> float:
    """Images per second of one arm."""
    batches = ARMS[arm](folder)
    for _ in range(6):
        next(batches)
    start, images = time.perf_counter(), 0
    while time.perf_counter() - start < _SECONDS.value:
        images += len(next(batches)[0])
    return images / (time.perf_counter() - start)


def measure_memory(folder: pathlib.Path, count: int) -> None:
    """Resident memory of this process at every tenth of `count` batches."""

    def resident() -> float:
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    batches = zip(our_stream(folder, pairs=False), our_stream(folder, pairs=True), strict=True)
    for number in range(count + 1):
        if number % (count // 10 or 1) == 0:
            print(f"{number:6d} batches: {resident():7.1f} MB", flush=True)
        next(batches)


def run_arm(arm: str, folder: pathlib.Path, core: int) -> float | None:
    """Measures an arm in a process of its own on one core; None where its packages are missing."""
    command = [sys.executable, __file__, f"--arm={arm}", f"--data={folder}", f"--seconds={_SECONDS.value}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu", "NO_ALBUMENTATIONS_UPDATE": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, {core})
    )
    if "ModuleNotFoundError" in done.stderr:
        return None
    if done.returncode:
        raise RuntimeError(done.stderr)
    return float(done.stdout.split()[-1])


def main(argv: list[str]) -> None:
    del argv
    if _ARM.value:
        print(measure(_ARM.value, pathlib.Path(_DATA.value)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_images(folder)
        if _MEMORY.value:
            measure_memory(folder, _MEMORY.value)
            return
        core = max(os.sched_getaffinity(0)) if _CORE.value is None else _CORE.value
        rates = {arm: [] for arm in ARMS}
        for _, arm in itertools.product(range(_TURNS.value), ARMS):
            rates[arm].append(run_arm(arm, folder, core))
        print("images per second on one core: median of", _TURNS.value, "turns (all turns)")
        for arm, values in rates.items():
            shown = "not installed" if None in values else f"{statistics.median(values):7.1f}"
            print(f"{arm:<34}{shown}   {'' if None in values else ' '.join(f'{value:.1f}' for value in values)}")


if __name__ == "__main__":
    app.run(main)
