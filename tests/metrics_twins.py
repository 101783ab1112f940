"""Slow, obvious numpy forms of the evaluation's counts."""

import math

import numpy as np

IGNORE = 255


def confusion_loops(labels, predictions, num_classes):
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for truth, predicted in zip(labels.ravel(), predictions.ravel(), strict=True):
        if truth != IGNORE:
            matrix[truth, predicted] += 1
    return matrix


def boundary(mask, width):
    """What of a mask [h, w] lies within `width` pixels of a pixel outside it; outside of the image is outside."""
    found = np.zeros_like(mask)
    padded = np.pad(mask, width)
    for y, x in np.argwhere(mask):
        found[y, x] = not padded[y : y + 2 * width + 1, x : x + 2 * width + 1].all()
    return found


def boundary_loops(labels, predictions, num_classes):
    """[3, C] of one image of its real size."""
    width = max(1, round(0.02 * math.hypot(*labels.shape)))
    counts = []
    for c in range(num_classes):
        truth = boundary(labels == c, width)
        predicted = boundary((predictions == c) & (labels != IGNORE), width)
        counts.append([(truth & predicted).sum(), truth.sum(), predicted.sum()])
    return np.transpose(counts)


def calibration_loops(labels, probabilities, bins):
    """(pixels [K], correct [K], confidence [K]) of one image."""
    counts = np.zeros((3, bins))
    for label, probability in zip(labels.ravel(), probabilities.reshape(-1, probabilities.shape[-1]), strict=True):
        if label != IGNORE:
            confidence = probability.max()
            k = min(math.ceil(confidence * bins), bins) - 1
            counts[:, k] += 1, probability.argmax() == label, confidence
    return counts
