"""Intervals and paired differences, against their definitions and scipy's bootstrap."""

import numpy as np
import pytest
import scipy.stats

from pc2seg_jax import bootstrap, comparison
from pc2seg_jax.comparison import Entry
from pc2seg_jax.errors import UserError
from pc2seg_jax.ops import metrics


def confusions(n=30, classes=4, seed=0, skill=5):
    rng = np.random.default_rng(seed)
    matrices = rng.integers(0, 20, (n, classes, classes)) + skill * np.eye(classes, dtype=int) * rng.integers(1, 30)
    matrices[:, 3] *= rng.uniform(size=(n, 1)) < 0.3  # a class that few images have
    return matrices.astype(np.int32)


def entry(name, matrices, **changes):
    iou = metrics.iou_per_class(matrices.sum(0))
    result = {
        "miou": 100 * metrics.mean_iou(matrices.sum(0)),
        "pixel_accuracy": 50.0,
        "boundary_miou": None,
        "iou": {str(c): value for c, value in enumerate(iou)},
        "split": {"sha256": "a"},
        "protocol": {"flip": False},
        "checkpoint": {"step": 9},
    }
    return Entry(name, result | changes, {"network": matrices})


def test_mean_iou_of_counts_is_mean_iou():
    matrices = confusions()
    counts = bootstrap.class_counts(matrices)
    expected = [metrics.mean_iou(matrix) for matrix in matrices]
    np.testing.assert_allclose(bootstrap.mean_iou_of_counts(counts), expected)
    assert bootstrap.mean_iou_of_counts(counts.sum(0)) == pytest.approx(metrics.mean_iou(matrices.sum(0)))
    assert np.isnan(bootstrap.mean_iou_of_counts(np.zeros((3, 4))))


def test_a_resample_is_the_mean_iou_of_the_images_drawn():
    matrices = confusions(n=5)
    found = bootstrap.resampled_mean_iou(bootstrap.class_counts(matrices), seed=3, resamples=7)
    weights = np.random.default_rng(3).multinomial(5, np.full(5, 0.2), size=7)
    for value, times in zip(found, weights, strict=True):
        drawn = np.concatenate([np.repeat(matrices[i : i + 1], k, 0) for i, k in enumerate(times)])
        assert value == pytest.approx(metrics.mean_iou(drawn.sum(0)))


def test_the_interval_is_that_of_scipy():
    matrices = confusions(n=60)
    counts = bootstrap.class_counts(matrices)

    def statistic(index, axis):
        return bootstrap.mean_iou_of_counts(counts[index.astype(int)].sum(-3))

    theirs = scipy.stats.bootstrap(
        (np.arange(60),), statistic, n_resamples=4_000, method="percentile", vectorized=True, rng=0, axis=-1
    ).confidence_interval
    ours = bootstrap.interval(bootstrap.resampled_mean_iou(counts, resamples=4_000))
    np.testing.assert_allclose(ours, theirs, atol=0.1 * (theirs.high - theirs.low))


def test_no_image_has_no_interval():
    assert bootstrap.interval(np.array([np.nan])) == [None, None]
    assert bootstrap.interval(bootstrap.resampled_mean(np.array([]))) == [None, None]


def test_a_run_compared_with_itself_has_no_difference():
    first, second = comparison.compare([entry("a", confusions()), entry("b", confusions())])
    assert "difference" not in first
    assert second["difference"] == {
        "miou": 0.0,
        "interval": [0.0, 0.0],
        "per_image": 0.0,
        "per_image_interval": [0.0, 0.0],
        "better": 0,
        "worse": 0,
    }


def test_differences_are_paired():
    """An image that is hard for both moves both: the difference has a narrower interval than either."""
    base = confusions(n=40)
    better = base + 3 * np.eye(4, dtype=np.int32)
    first, second = comparison.compare([entry("a", base), entry("b", better)])
    difference = second["difference"]
    assert difference["miou"] == pytest.approx(second["miou"] - first["miou"])
    low, high = difference["interval"]
    assert 0 < low < difference["miou"] < high
    assert high - low < 0.5 * (first["interval"][1] - first["interval"][0])
    assert (difference["better"], difference["worse"]) == (40, 0)
    per_image = [metrics.mean_iou(x) - metrics.mean_iou(y) for x, y in zip(better, base, strict=True)]
    assert difference["per_image"] == pytest.approx(100 * np.mean(per_image))


def test_the_table_has_a_line_per_run():
    lines = comparison.table(comparison.compare([entry("runs/a", confusions()), entry("b", confusions(seed=1))]))
    head, first, second, note = lines.splitlines()
    assert head.split()[0] == "run"
    assert first.startswith("runs/a")
    assert second.startswith("b ")
    assert "differences to runs/a" in note


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": {"sha256": "b"}}, "other images than a"),
        ({"iou": {"cat": 1.0}}, "other classes than a"),
        ({"protocol": {"flip": True}}, "other settings of evaluation than a"),
    ],
)
def test_what_cannot_be_compared_is_named(changes, words):
    with pytest.raises(UserError, match=words):
        comparison.compare([entry("a", confusions()), entry("b", confusions(), **changes)])


def test_a_run_without_a_teacher_has_none_to_compare():
    with pytest.raises(UserError, match=r"a has no teacher"):
        comparison.compare([entry("a", confusions())._replace(network="teacher")])
