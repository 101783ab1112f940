"""Labelled and strong images share a pass of the real network: the same as one pass each."""

import jax
import numpy as np
import pytest

from pc2seg_jax import build, objective, step, streams
from pc2seg_jax.ops.losses import cosine_consistency, masked_mean

CLASSES, IGNORE = 7, 255


@pytest.mark.parametrize(("blocks", "rows_a", "rows_b"), [(2, [0, 3], [1, 2, 4, 5]), (1, [0, 1], [2, 3, 4, 5])])
def test_moments_are_averaged_stream_by_stream(blocks, rows_a, rows_b):
    moments = {"mean": np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)}
    for found, rows in zip(streams.average(moments, 2, 4, blocks), (rows_a, rows_b), strict=True):
        np.testing.assert_allclose(found["mean"], moments["mean"][rows].mean(0, keepdims=True), rtol=1e-6)


def test_joining_streams_changes_nothing_in_the_real_network(tiny_config, make_batch):
    config = tiny_config(batch_labeled=4, batch_unlabeled=8, model__dropout_rate=0.0)
    model = build.build_model(config, CLASSES)
    params, stats = jax.jit(model.init)(jax.random.key(0))
    batch = make_batch(config)

    @jax.jit
    def separate(params, stats, batch):
        streams = batch.labeled.image, batch.unlabeled.weak, batch.unlabeled.strong
        passes = [model.apply(params, stats, images, train=True) for images in streams]
        labeled, weak, strong = (outputs for outputs, _ in passes)
        for _, moments in passes:
            stats = model.update_statistics(stats, moments)
        distance = cosine_consistency(weak.logits, strong.logits, temperature=0.5)
        supervised = objective._supervised_loss(labeled, batch.labeled, IGNORE)
        return supervised.value(), masked_mean(distance, batch.unlabeled.valid[:, ::4, ::4]), stats

    @jax.jit
    def joined(params, stats, batch):
        evaluate = build.build_objective(config, IGNORE)
        result = evaluate(model, params, stats, batch, step.image_keys(jax.random.key(5), batch), teacher={})
        for moments in result.moments:
            stats = model.update_statistics(stats, moments)
        return result.terms["loss/supervised"].value(), result.terms["loss/consistency"].value(), stats

    (supervised, consistency, new_stats), slow = joined(params, stats, batch), separate(params, stats, batch)
    np.testing.assert_allclose(supervised, slow[0], rtol=1e-5)
    np.testing.assert_allclose(consistency, slow[1], rtol=1e-3)  # 1 - cos of nearly equal vectors
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), new_stats, slow[2])
