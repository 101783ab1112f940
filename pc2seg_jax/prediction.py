"""Masks for images of any size: batches of one padded size, and windows where an image is too large for that."""

import collections
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np

from pc2seg_jax import build
from pc2seg_jax.data.photos import Header, as_rgb, read_header, shrink
from pc2seg_jax.errors import UserError
from pc2seg_jax.inference import ONE_VIEW, InferenceViews, make_probabilities, window_starts
from pc2seg_jax.parallel import shard_batch
from pc2seg_jax.restoring import Run

WINDOW = 1_025  # of images that are too large to be looked at as a whole
WHOLE = 2_049 * 2_049  # pixels up to which they are not


class Prediction(NamedTuple):
    """image: RGB uint8 [h, w, 3] as the network saw it. strips: probabilities [rows, w, C] float32, from top to bottom.

    A large image has many strips, so that the probabilities of all its pixels need not be held at once.
    """

    header: Header
    image: np.ndarray
    strips: Iterator[np.ndarray]


def padded_size(size: tuple[int, int], at_least: tuple[int, int]) -> tuple[int, int]:
    """The size of the canvas of an image, whose sides are of the form 16k + 1.

    At least those of the evaluation size, beyond it rounded up to one of four lengths per octave: few different sizes,
    each of which is compiled. The size of an image alone decides, so that its company does not change its mask.
    """
    sides = []
    for side, least in zip(size, at_least, strict=True):
        cells = -(-(side - 1) // 16)
        step = max(1, 2 ** (cells.bit_length() - 3))
        sides.append(max(least, 16 * step * -(-cells // step) + 1))
    return tuple(sides)


class Predictor:
    """The compiled network of a run for images of any size.

    Args:
      views: what probabilities are averaged over. Images of more pixels than `WHOLE` are looked at by windows of 1,025
        pixels anyway, each in all scales; a window in `views` makes all do so that are larger than it.

    Raises:
      UserError: a window together with scales, where `inference.make_probabilities` scales first, and cuts then.
    """

    def __init__(self, run: Run, views: InferenceViews = ONE_VIEW):
        if views.window and views.scales != (1.0,):
            raise UserError(
                f"--window={views.window} with --scales={','.join(f'{scale:g}' for scale in views.scales)}: prediction "
                "by windows has one scale, 1, so leave one of the two out"
            )
        self._run, self._window = run, views.window
        self._mean = np.float32(build.mean_pixel(run.config))
        placed = run.shardings
        self._forward = jax.jit(
            make_probabilities(run.model, views._replace(window=0)),
            in_shardings=(placed.replicated, placed.replicated, placed.data),
            out_shardings=placed.data,
        )

    def canvas(self, size: tuple[int, int]) -> tuple[int, int]:
        """The padded size of what the network is shown of an image at a time: all of it, or a window."""
        whole, window = padded_size(size, self._run.info.eval_size), self._window
        if not window and math.prod(whole) > max(WHOLE, math.prod(self._run.info.eval_size)):
            window = WINDOW
        return tuple(min(window, side) for side in whole) if window and max(size) > window else whole

    def needs_windows(self, size: tuple[int, int]) -> bool:
        return any(side > shown for side, shown in zip(size, self.canvas(size), strict=True))

    def batch(self, images: list[np.ndarray], canvas: tuple[int, int], rows: int) -> list[np.ndarray]:
        """Probabilities [h, w, C] of at most `rows` images that fit into the canvas; what is missing is filled up."""
        devices = self._run.shardings.mesh.size
        batch = np.broadcast_to(self._mean, (-(-rows // devices) * devices, *canvas, 3)).copy()
        for row, image in zip(batch, images, strict=False):
            row[: image.shape[0], : image.shape[1]] = image
        placed = shard_batch(batch, self._run.shardings.data)
        found = np.asarray(self._forward(self._run.params, self._run.batch_stats, placed))
        return [p[: image.shape[0], : image.shape[1]] for p, image in zip(found, images, strict=False)]

    def strips(self, image: np.ndarray) -> Iterator[np.ndarray]:
        """Probabilities by windows, [rows, w, C] from top to bottom, in all [h, w, C].

        The mean of those that hold a pixel; in one scale, the same as `inference.make_probabilities` with a window.
        """
        (height, width), canvas = image.shape[:2], self.canvas(image.shape[:2])
        at_once = self._run.shardings.mesh.size
        tops, lefts = (window_starts(side, shown) for side, shown in zip((height, width), canvas, strict=True))
        total, count = None, np.zeros((canvas[0], width, 1), np.float32)
        for top, following in zip(tops, [*tops[1:], height], strict=True):
            for start in range(0, len(lefts), at_once):
                some = lefts[start : start + at_once]
                parts = [image[top : top + canvas[0], left : left + canvas[1]] for left in some]
                for left, found in zip(some, self.batch(parts, canvas, at_once), strict=True):
                    if total is None:
                        total = np.zeros((canvas[0], width, found.shape[-1]), np.float32)
                    total[: found.shape[0], left : left + canvas[1]] += found
                    count[: found.shape[0], left : left + canvas[1]] += 1
            done = following - top  # no later window reaches these rows
            yield total[:done] / count[:done]
            for rows in (total, count):
                rows[: canvas[0] - done] = rows[done:].copy()
                rows[canvas[0] - done :] = 0

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Probabilities [h, w, C] float32 of an RGB uint8 image [h, w, 3]."""
        if self.needs_windows(image.shape[:2]):
            return np.concatenate(list(self.strips(image)))
        return self.batch([image], self.canvas(image.shape[:2]), 1)[0]


def make_predictor(run: Run) -> Callable[[np.ndarray], np.ndarray]:
    """`predict(image uint8 [h, w, 3]) -> probabilities [h, w, C] float32`, compiled once per padded size."""
    return Predictor(run)


def plan_batches(sizes: list[tuple[int, int]], predictor: Predictor, batch_size: int) -> list[tuple[list[int], int]]:
    """(indices, rows) of every batch: images of one canvas together, those that need windows alone.

    rows: of the compiled batch: `batch_size`, or for the last one of a canvas the next power of two, so that a canvas
    is compiled at most twice.
    """
    canvases: dict[tuple[int, int], list[int]] = {}
    batches = []
    for index, size in enumerate(sizes):
        if predictor.needs_windows(size):
            batches.append(([index], 1))
        else:
            canvases.setdefault(predictor.canvas(size), []).append(index)
    for members in canvases.values():
        for start in range(0, len(members), batch_size):
            part = members[start : start + batch_size]
            batches.append((part, min(batch_size, 1 << (len(part) - 1).bit_length())))
    return batches


def read_headers(paths: Iterable[pathlib.Path], max_side: int) -> tuple[list[Header], dict[pathlib.Path, str]]:
    """The headers of the images, and why those of others cannot be read."""
    headers, problems = [], {}
    for path in paths:
        try:
            headers.append(read_header(path, max_side))
        except UserError as error:
            problems[path] = str(error)
    return headers, problems


def predict_all(
    headers: list[Header], predictor: Predictor, *, batch_size: int, problems: dict[pathlib.Path, str]
) -> Iterator[Prediction]:
    """Predictions of all images, those of one canvas together; the next batch is read while one is computed.

    Args:
      problems: is told why an image that cannot be decoded is left out.
    """

    def read(index: int) -> np.ndarray | None:
        try:
            return shrink(as_rgb(headers[index].path), headers[index].read_size)
        except UserError as error:
            problems[headers[index].path] = str(error)
            return None

    batches = plan_batches([header.read_size for header in headers], predictor, batch_size)
    with ThreadPoolExecutor() as pool:
        reading = collections.deque()
        for members, rows in batches:
            reading.append((members, rows, [pool.submit(read, index) for index in members]))
            if len(reading) > 1:
                yield from _predicted(headers, predictor, *reading.popleft())
        while reading:
            yield from _predicted(headers, predictor, *reading.popleft())


def _predicted(
    headers: list[Header], predictor: Predictor, members: list[int], rows: int, futures: list[Future]
) -> Iterator[Prediction]:
    images = [(headers[i], future.result()) for i, future in zip(members, futures, strict=True)]
    images = [(header, image) for header, image in images if image is not None]
    if not images:
        return
    size = images[0][1].shape[:2]
    if predictor.needs_windows(size):
        [(header, image)] = images
        yield Prediction(header, image, predictor.strips(image))
        return
    found = predictor.batch([image for _, image in images], predictor.canvas(size), rows)
    for (header, image), probabilities in zip(images, found, strict=True):
        yield Prediction(header, image, iter([probabilities]))
