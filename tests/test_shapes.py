"""The choice of the labelled images of the embedded dataset."""

import numpy as np
import pytest

from pc2seg_jax.data.shapes import balanced_order, load_shapes


def slow_order(shown):
    """Classes by need, images by number: the rule as it is said."""
    num_images, num_classes = len(shown), len(shown[0])
    order = []
    while len(order) < num_images:
        remaining = [i for i in range(num_images) if i not in order]
        counts = [sum(bool(shown[i][k]) for i in order) for k in range(num_classes)]
        wanted = [(counts[k], k, i) for k in range(num_classes) for i in remaining if shown[i][k]]
        order.append(min(wanted)[2] if wanted else remaining[0])
    return order


@pytest.mark.parametrize("seed", range(5))
def test_order_against_the_rule(seed):
    shown = np.random.default_rng(seed).uniform(size=(20, 4)) < (0.1, 0.3, 0.5, 0.0)
    order = balanced_order(shown)
    assert order == slow_order(shown)
    assert sorted(order) == list(range(20))


def test_a_rare_class_is_labelled_as_often_as_a_common_one():
    shown = np.zeros((60, 2), bool)
    shown[:50, 0] = True
    shown[50:, 1] = True
    assert shown[balanced_order(shown)[:10]].sum(0).tolist() == [5, 5]


def test_few_labels_show_every_class_and_larger_sets_contain_smaller_ones():
    few, more = (load_shapes(num_labeled=n, num_unlabeled=60, num_val=1, size=49) for n in (12, 20))
    assert more.labeled.ids[:12] == few.labeled.ids
    shown = np.array([[np.any(few.labeled.read_mask(i) == k) for k in range(1, 7)] for i in range(12)])
    assert shown.sum(0).min() >= 3
    assert set(few.labeled.ids) <= set(few.unlabeled.ids)
    for i, name in enumerate(few.labeled.ids):
        same = few.unlabeled.read_image(few.unlabeled.ids.index(name))
        np.testing.assert_array_equal(few.labeled.read_image(i), same)
