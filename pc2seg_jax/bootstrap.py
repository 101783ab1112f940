"""How far a mean IoU moves with the choice of images: bootstrap intervals, alone and of paired differences."""

import numpy as np

RESAMPLES = 2_000
LEVEL = 95  # %


def class_counts(confusions: np.ndarray) -> np.ndarray:
    """[n, C, C] confusion matrices, rows are the truth -> [n, 3, C]: pixels right, of the truth, of the prediction."""
    hits = np.diagonal(confusions, axis1=1, axis2=2)
    return np.stack([hits, confusions.sum(2), confusions.sum(1)], axis=1).astype(np.float64)


def mean_iou_of_counts(counts: np.ndarray) -> np.ndarray:
    """Mean over the classes that are present or predicted, 0..1, of counts [..., 3, C]; nan where there are none."""
    hits, truth, predicted = np.moveaxis(counts, -2, 0)
    union = truth + predicted - hits
    iou = np.divide(hits, union, out=np.full(union.shape, np.nan), where=union > 0)
    found = np.isfinite(iou)
    present = found.sum(-1)
    total = np.where(found, iou, 0).sum(-1)
    return np.divide(total, present, out=np.full(np.shape(total), np.nan), where=present > 0)


def _weights(n: int, seed: int, resamples: int) -> np.ndarray:
    """How often each of n images is drawn, [R, n]; the same for the same arguments."""
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    return draws.astype(np.float64)


def resampled_mean_iou(counts: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Mean IoU, 0..1, of n images drawn with replacement from n, `resamples` times: [n, 3, C] -> [R].

    The same seed draws the same images, so that the values of two networks on one list are paired.
    """
    n = len(counts)
    drawn = _weights(n, seed, resamples) @ counts.reshape(n, -1)
    return mean_iou_of_counts(drawn.reshape(resamples, *counts.shape[1:]))


def resampled_mean(values: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """The mean of n values drawn with replacement from n, `resamples` times: [n] -> [R], [0] where n = 0."""
    n = len(values)
    return _weights(n, seed, resamples) @ values / n if n else np.empty(0)


def interval(values: np.ndarray) -> list[float | None]:
    """The middle 95 % of resampled values, nan apart: [low, high]; None where there is no value."""
    values = values[np.isfinite(values)]
    if not len(values):
        return [None, None]
    tail = (100 - LEVEL) / 2
    return [float(x) for x in np.percentile(values, [tail, 100 - tail])]
