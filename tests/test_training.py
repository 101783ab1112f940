"""A tiny run from top to bottom: what it writes, how it continues after an interruption, what it refuses."""

import gzip
import json
import math

import jax
import numpy as np
import pytest
from PIL import Image

from pc2seg_jax import evaluation, profiling, restoring, training, workdir
from pc2seg_jax.checkpoints import Checkpoints
from pc2seg_jax.data.shapes import load_shapes
from pc2seg_jax.data.sources import array_source
from pc2seg_jax.data.synthetic import CLASS_NAMES
from pc2seg_jax.errors import UserError
from pc2seg_jax.initialization import starting_state
from pc2seg_jax.parallel import make_shardings, prefetch_to_devices

STEPS, EVERY = 6, 2


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def training_lines(folder):
    return [line for line in lines(folder) if "loss" in line]


def kept(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdecimal())


def last_state(folder, config, make_parts):
    parts = make_parts(config)
    with Checkpoints(folder) as checkpoints:
        return jax.device_get(checkpoints.restore_newest(parts.init(0)))


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, tiny_config, train):
    """A run that was stopped in its fourth step, one after its first checkpoint, and then continued: folder, lines."""
    folder = tmp_path_factory.mktemp("runs") / "interrupted"
    batches = training.training_batches

    def until_the_fifth(config, dataset, start_step):
        for i, batch in enumerate(batches(config, dataset, start_step)):
            if start_step + i == 4:  # asked for before the fourth step
                raise KeyboardInterrupt
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "training_batches", until_the_fifth)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_config(), folder)
    assert kept(folder) == [EVERY]
    stopped = training_lines(folder)
    assert [line["step"] for line in stopped] == [1, 2, 3]
    result = train(tiny_config(), folder)
    return folder, stopped, result


def test_metrics_hold_every_step_once_and_every_evaluation(tiny_run):
    every = [line["step"] for line in lines(tiny_run.workdir) if "loss" in line]
    assert every == list(range(1, STEPS + 1))
    evaluated = [line for line in lines(tiny_run.workdir) if "val/miou" in line]
    assert [line["step"] for line in evaluated] == [2, 4, 6]
    assert evaluated[-1]["val/miou"] == tiny_run.result["miou"]
    assert evaluated[-1]["val/pixel_accuracy"] == tiny_run.result["pixel_accuracy"]
    for line in lines(tiny_run.workdir):
        assert all(math.isfinite(value) for value in line.values())
    first, *_, last = training_lines(tiny_run.workdir)
    assert {"loss/supervised", "loss/consistency", "loss/contrast", "gradient_norm"} <= first.keys()
    np.testing.assert_allclose(first["learning_rate"], 0.01)
    np.testing.assert_allclose(last["learning_rate"], 0.01 * (1 - 5 / 6) ** 0.9, rtol=1e-5)
    assert list((tiny_run.workdir / "tensorboard").iterdir())


def test_an_evaluation_says_what_was_measured_and_how(tiny_run):
    stored = json.loads((tiny_run.workdir / "evaluation" / "6_val.json").read_text())
    assert stored == tiny_run.result
    assert list(stored["iou"]) == list(CLASS_NAMES)
    values = [value for value in stored["iou"].values() if value is not None]
    np.testing.assert_allclose(stored["miou"], np.mean(values))
    assert 0 <= stored["miou"] <= stored["pixel_accuracy"] <= 100
    assert stored["protocol"]["size"] == [97, 97]
    assert stored["protocol"]["ignore_id"] == 255
    assert stored["protocol"]["flip"] is False
    assert stored["checkpoint"] == {"step": 6}
    split = workdir.describe_split("shapes/seed 0", [f"val_{i:05d}" for i in range(5)])
    assert stored["split"] == {"role": "val", **split._asdict()}
    assert sorted(path.name for path in (tiny_run.workdir / "evaluation").iterdir()) == [
        f"{step}_val.{ending}" for step in (2, 4, 6) for ending in ("json", "npz")
    ]
    with np.load(tiny_run.workdir / "evaluation" / "6_val.npz") as images:
        assert images["ids"].tolist() == [f"val_{i:05d}" for i in range(5)]
        assert images["network"].sum(0).tolist() == stored["confusion"]
        assert images["teacher"].sum(0).tolist() == stored["teacher"]["confusion"]
        assert images["network"].shape == (5, 7, 7)
    low, high = stored["miou_interval"]
    assert low < stored["miou"] < high
    assert 0 <= stored["boundary_miou"] <= stored["miou"]


def test_the_latest_and_the_best_checkpoint_are_kept(tiny_run):
    miou = {line["step"]: line["val/miou"] for line in lines(tiny_run.workdir) if "val/miou" in line}
    with Checkpoints(tiny_run.workdir) as checkpoints:
        best = checkpoints.find("best")
        assert checkpoints.find("latest") == checkpoints.find("6") == 6
    assert miou[best] == max(miou.values())
    assert kept(tiny_run.workdir) == sorted({best, 4, 6})


def test_a_better_checkpoint_outlives_later_ones(tmp_path, tiny_config, make_parts):
    state = make_parts(tiny_config()).init(0)
    with Checkpoints(tmp_path, create=True) as checkpoints:
        for step, miou in ((1, 10.0), (2, 30.0), (3, 20.0), (4, 5.0), (5, None)):
            checkpoints.save(state._replace(step=np.int32(step)), miou)
    assert kept(tmp_path) == [2, 4, 5]
    with Checkpoints(tmp_path) as checkpoints:
        assert [checkpoints.find(which) for which in ("best", "latest", "2")] == [2, 5, 2]
        with pytest.raises(UserError, match=r"--step=3 .*\[2, 4, 5\]"):
            checkpoints.find("3")


def test_an_interrupted_run_continues_bit_for_bit(tiny_run, interrupted, make_parts):
    folder, stopped, result = interrupted
    assert stopped == training_lines(tiny_run.workdir)[:3]
    assert training_lines(folder) == training_lines(tiny_run.workdir)
    assert result == tiny_run.result
    ours, theirs = (last_state(f, tiny_run.config, make_parts) for f in (folder, tiny_run.workdir))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert int(ours.step) == STEPS


def test_a_finished_run_started_again_only_evaluates(interrupted, tiny_config, train):
    folder, _, result = interrupted
    before = training_lines(folder), kept(folder)
    assert train(tiny_config(), folder) == result
    assert (training_lines(folder), kept(folder)) == before


def assert_same(ours, theirs):
    """Equal but for the mean confidences, which are sums of floats."""
    for result in (ours, theirs):
        for bins in (result["calibration"], result.get("teacher", result)["calibration"]):
            assert len(bins["bins"]) == 15
    flat, other = (jax.tree_util.tree_leaves_with_path(x, is_leaf=lambda x: x is None) for x in (ours, theirs))
    for (path, a), (other_path, b) in zip(flat, other, strict=True):
        assert path == other_path
        assert a == (pytest.approx(b, rel=1e-5) if "'calibration'" in str(path) and b is not None else b), path


@pytest.mark.parametrize("batch_size", [4, 5, 1])
def test_a_checkpoint_evaluates_as_in_training_in_batches_of_any_size(tiny_run, make_parts, batch_size):
    """5 validation images: batches of 4 leave a batch of one image and three fillers."""
    parts = make_parts(tiny_run.config)
    restored = restoring.restore(tiny_run.workdir, "latest", parts.shardings)
    config = restored.config.copy_and_resolve_references()
    config.eval.batch_size = batch_size
    dataset = load_shapes(num_labeled=3, num_unlabeled=5, num_val=5)
    batches = training.evaluation_batches(config, dataset, restored.info, "val", parts.shardings)
    networks = evaluation.networks_of(restored.params, restored.batch_stats, restored.teacher)
    measured = evaluation.evaluate(parts.eval_step, networks, batches, parts.shardings, count=5)
    assert set(measured) == {"network", "teacher"}
    for found in measured.values():
        np.testing.assert_array_equal(found.confusions.sum((1, 2)), [97 * 97] * 5)
        assert found.calibration.pixels.sum() == 5 * 97 * 97
    result = evaluation.summarize(measured, restored.info, step=restored.step, split="val")
    assert_same(result, tiny_run.result)


def test_another_configuration_is_refused_by_the_names_of_its_keys(tiny_run, tiny_config, train):
    with pytest.raises(UserError) as error:
        train(tiny_config(optim__learning_rate=0.5, seed=3), tiny_run.workdir)
    assert "optim.learning_rate: 0.01 -> 0.5; seed: 0 -> 3" in str(error.value)
    assert str(tiny_run.workdir) in str(error.value)


def test_other_images_under_the_same_names_are_refused(tiny_run):
    config, info = workdir.load(tiny_run.workdir)
    splits = info.splits | {"val": workdir.describe_split(info.splits["val"].name, ["another"])}
    with pytest.raises(UserError, match=r"another list of val images .*5 then, 1 now"):
        workdir.claim(tiny_run.workdir, config, info._replace(splits=splits))


def test_a_folder_of_other_things_is_not_claimed(tmp_path, tiny_config, train):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="not the folder of a run"):
        train(tiny_config(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_wrong_settings_leave_no_folder_behind(tmp_path, tiny_config):
    shardings = make_shardings(1)
    for changes, words in (
        ({"init_from": "missing.npz"}, "missing.npz"),
        ({"init_from": __file__}, "pc2seg_jax.pretrain"),
        ({"model.multi_grid": (1, 2, 4)}, "multi_grid"),
        ({"steps": 0}, "config.steps"),
    ):
        with pytest.raises(UserError, match=words):
            training.train_and_evaluate(tiny_config(**changes), tmp_path / "run", shardings)
        assert not list(tmp_path.iterdir()), changes


def test_a_run_starts_from_a_former_run(tmp_path, tiny_run, tiny_config, make_parts):
    """Of the same classes: everything but the projections. Of other classes: logits of its own, too."""
    config = tiny_config(init_from=str(tiny_run.workdir))
    init = make_parts(config).init
    former = restoring.restore(tiny_run.workdir, "latest")
    names = former.info.class_names
    for classes, kept in ((names, True), ((*names[:-1], "other"), False)):
        with Checkpoints(tmp_path / "empty", create=True) as checkpoints:
            state, text = starting_state(config, classes, init, checkpoints, make_parts(config).shardings)
        fresh = init(config.seed)
        assert text == f"backbone, head{' and logits' if kept else ''} from {tiny_run.workdir} (step 6)".replace(
            "backbone, head from", "backbone and head from"
        )
        for part in ("backbone", "head"):
            expected = dict(former.params[part])
            if part == "head" and not kept:
                expected["logits"] = fresh.params["head"]["logits"]
            jax.tree.map(np.testing.assert_array_equal, state.params[part], expected)
            jax.tree.map(np.testing.assert_array_equal, state.batch_stats[part], former.batch_stats[part])
        jax.tree.map(np.testing.assert_array_equal, state.params["projection"], fresh.params["projection"])
        jax.tree.map(np.testing.assert_array_equal, state.teacher["params"], state.params)
        assert int(state.step) == 0


def test_a_former_run_with_another_network_is_refused(tmp_path, tiny_run, tiny_config):
    config = tiny_config(init_from=str(tiny_run.workdir), model__head_width=16)
    with pytest.raises(UserError, match=r"config.init_from=.*\(step 6\) does not fit this network.*head"):
        training.train_and_evaluate(config, tmp_path / "run", make_shardings(1))
    assert not list(tmp_path.iterdir())


def test_an_evaluation_size_that_is_too_small_is_refused_before_training(tmp_path, tiny_config):
    with pytest.raises(UserError, match=r"config.eval.size is \(97, 81\), .* needs \(97, 97\)"):
        training.train_and_evaluate(tiny_config(eval__size=(97, 81)), tmp_path / "run", make_shardings(1))
    assert not list(tmp_path.iterdir())


def test_another_split_is_evaluated_in_a_size_that_holds_it(tiny_run):
    _, info = workdir.load(tiny_run.workdir)
    assert info.eval_size == (97, 97)
    for sizes, expected in (([[90, 180], [100, 50]], (113, 193)), ([[90, 80]], (97, 97))):
        source = array_source(np.zeros((1, 3, 3, 3), np.uint8), None, ["a"])._replace(sizes=np.array(sizes))
        assert training.evaluation_info(info, source) == info._replace(eval_size=expected)


def test_batches_must_be_multiples_of_the_devices(tmp_path, tiny_config):
    for key in ("batch_labeled", "batch_unlabeled"):
        with pytest.raises(UserError, match=f"config.{key} is 12, expected a multiple of the 8 devices"):
            training.train_and_evaluate(tiny_config(**{key: 12}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_masks_of_unlabelled_images_are_never_opened(tmp_path, tiny_config, train):
    """A folder of the same images trains to the same numbers, with unreadable masks beside its unlabelled images."""
    root = tmp_path / "photos"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    shapes = load_shapes(num_labeled=3, num_unlabeled=5, num_val=5)
    for source, readable in ((shapes.unlabeled, ()), (shapes.labeled, range(3)), (shapes.val, range(5))):
        for i, name in enumerate(source.ids):
            Image.fromarray(source.read_image(i)).save(root / "images" / f"{name}.png")
            mask = root / "masks" / f"{name}.png"
            if i in readable:
                Image.fromarray(source.read_mask(i)).save(mask)
            else:
                mask.write_bytes(b"not a mask")
    for file, source in (("labeled", shapes.labeled), ("train", shapes.unlabeled), ("val", shapes.val)):
        (root / f"{file}.txt").write_text("\n".join(source.ids))
    (root / "classes.txt").write_text("\n".join(CLASS_NAMES))
    config = tiny_config(data__dataset="folder", data__root=str(root))
    result = train(config, tmp_path / "run")
    reference = train(tiny_config(), tmp_path / "reference")
    assert training_lines(tmp_path / "run") == training_lines(tmp_path / "reference")
    assert result["iou"] == reference["iou"]
    assert result["split"]["name"] == "photos/val.txt"


def test_the_supervised_baseline_sees_no_unlabelled_image(tiny_config):
    config = tiny_config(objective="supervised")
    dataset = load_shapes(num_labeled=3, num_unlabeled=5, num_val=5)
    alone = next(training.training_batches(config, dataset._replace(unlabeled=None), 0))
    paired = next(training.training_batches(tiny_config(), dataset, 0))
    assert alone.unlabeled is None
    jax.tree.map(np.testing.assert_array_equal, alone.labeled, paired.labeled)


def test_batches_are_placed_in_order_and_one_ahead():
    drawn = []

    def batches():
        for i in range(4):
            drawn.append(i)
            yield {"x": np.full((2, 3), i)}

    placed = prefetch_to_devices(batches(), make_shardings(2).data)
    for i in range(4):
        np.testing.assert_array_equal(next(placed)["x"], np.full((2, 3), i))
        assert len(drawn) == min(i + 2, 4)
    assert list(placed) == []


@pytest.mark.parametrize(("steps", "recorded"), [((2, 3), {2, 3}), ((5, 9), {5, 6}), ((7, 9), set())])
def test_the_profile_holds_the_steps_that_were_asked_for(tmp_path, steps, recorded):
    found = []
    with profiling.Profiler(tmp_path / "profile", steps) as profiler:
        for number in range(1, STEPS + 1):
            with profiler.step(number):
                result = jax.numpy.ones(3) * number
            profiler.after(number, result)
    for path in (tmp_path / "profile").rglob("*.trace.json.gz"):
        for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]:
            found += [event["args"]["step_num"]] if "step_num" in event.get("args", {}) else []
    assert {int(step) for step in found} == recorded
