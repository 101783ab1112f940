"""Every sentence of `validate`, storing and comparing configurations, and that every file of configs/ trains."""

import functools
import importlib.util
import inspect
import itertools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import pytest

from pc2seg_jax import build, config, parallel, validation
from pc2seg_jax.errors import UserError

CONFIGS = sorted((pathlib.Path(__file__).parent.parent / "configs").glob("*.py"))

# key, wrong value, further keys of the case, part of the sentence besides key and value
WRONG = [
    ("data.root", "gs://bucket/x", {"data.dataset": "folder"}, "gcloud storage cp"),
    ("objective", "magic", {}, "supervised"),
    ("data.dataset", "voc", {}, "folder"),
    ("model.backbone", "resnet7", {}, "resnet50_beta"),
    ("model.contrast_layers", ("conv9",), {}, "decoder"),
    ("model.contrast_layers", ("conv5", "conv5"), {}, "different ones"),
    ("model.contrast_layers", (), {}, "different ones"),
    ("model.dtype", "float16", {}, "bfloat16"),
    ("loss.strategy", "hardest", {}, "different_image_pseudo_label"),
    *((key, 0, {}, "positive") for key in validation._POSITIVE),
    *((key, -1, {}, "0 or more") for key in validation._NOT_NEGATIVE),
    ("augment.crop_size", (512, 513), {}, "16k + 1, e.g. 513"),
    ("augment.crop_size", (513, 1), {}, "16k + 1"),
    ("augment.crop_size", (513,), {}, "height, width"),
    ("augment.scales", (), {}, "positive"),
    ("augment.scales", (1.0, -0.5), {}, "positive"),
    ("augment.flip_probability", 1.5, {}, "0 to 1"),
    ("augment.hue", -0.1, {}, "0 to 1"),
    ("eval.size", (500, 0), {}, "16k + 1"),
    ("eval.size", (513, 513, 3), {}, "height, width"),
    ("model.output_stride", 32, {}, "8 or 16"),
    ("model.dropout_rate", 1.0, {}, "below 1"),
    ("model.head_decay", -0.1, {}, "below 1"),
    ("model.backbone_decay", 1.5, {}, "below 1"),
    ("optim.momentum", 1.0, {}, "below 1"),
    ("data.num_labeled", 1001, {"data.dataset": "shapes"}, "num_unlabeled (1000)"),
    ("data.root", "", {"data.dataset": "folder"}, "--config.data.root=FOLDER"),
    ("batch_labeled", 6, {}, "multiple of config.group_size (4)"),
    ("batch_unlabeled", 6, {}, "multiple of config.group_size (4)"),
    ("group_size", 0, {"batch_labeled": 8}, "config.batch_unlabeled (64)"),
    ("loss.contrast_weight", 0, {"loss.consistency_weight": 0.0}, "--config.objective=supervised"),
    ("loss.strategy", "different_image", {"group_size": 1}, "config.group_size to 2 or more"),
    ("augment.crop_size", ("a", 1), {}, "a tuple of whole numbers"),
    ("augment.crop_size", (161.0, 209.0), {}, "a tuple of whole numbers"),
    ("augment.scales", (0.5, "x"), {}, "a tuple of numbers"),
    ("augment.scales", 2.0, {}, "a tuple of numbers"),
    ("eval.mean_without", (3,), {}, "a tuple of words"),
    ("model.aspp_rates", (0, 1), {}, "positive whole numbers"),
    ("model.aspp_rates", (), {}, "positive whole numbers"),
    ("model.multi_grid", (0, 0), {}, "positive whole numbers"),
    ("model.remat", 1, {}, "True or False"),
    ("steps", True, {}, "whole numbers"),
    ("optim.learning_rate", math.inf, {}, "finite"),
    ("seed", 2**31, {}, "less than 2147483648"),
    ("loss.strategy", "oracle", {}, "--config.data.unlabeled_masks=true"),
]


def changed(changes):
    c = config.default_config()
    c.data.root = "somewhere"
    with c.ignore_type():
        c.update_from_flattened_dict(changes)
    return c


def test_the_default_configuration_is_valid():
    validation.validate(changed({}), build.CHOICES)


@pytest.mark.parametrize(("key", "value", "others", "hint"), WRONG, ids=lambda x: str(x) if x != {} else "")
def test_a_wrong_value_is_named_with_its_key_and_what_it_may_be(key, value, others, hint):
    with pytest.raises(UserError) as error:
        validation.validate(changed({key: value, **others}), build.CHOICES)
    sentence = str(error.value)
    assert f"config.{key}" in sentence
    assert hint in sentence
    shown = [value] if not isinstance(value, tuple) or len(value) != 2 else [x for x in value if x not in (513, 1.0, 0)]
    assert all(str(x) in sentence for x in shown), sentence
    assert "\n" not in sentence


def test_keys_that_a_file_adds_or_lacks_are_named():
    c = config.default_config()
    c.unlock()
    c.optim.lr = 0.1
    with pytest.raises(UserError, match=r"^there is no key config\.optim\.lr: (did you mean|see) "):
        validation.validate(c, build.CHOICES)
    del c.optim.lr
    c.optim.learning_rates = 0.1
    with pytest.raises(UserError, match=r"config\.optim\.learning_rates: did you mean config\.optim\.learning_rate\?"):
        validation.validate(c, build.CHOICES)
    del c.optim.learning_rates
    del c.objective
    with pytest.raises(UserError, match=r"^config\.objective is missing: begin from default_config\(\)"):
        validation.validate(c, build.CHOICES)


def test_unused_settings_are_not_judged():
    for changes in (
        {"objective": "supervised", "group_size": 0, "batch_labeled": 8},
        {"objective": "supervised", "group_size": 1, "loss.contrast_weight": 0.0, "loss.consistency_weight": 0.0},
        {"loss.contrast_weight": 0.0, "group_size": 1},
        {"loss.strategy": "pseudo_label", "group_size": 1},
        {"loss.strategy": "oracle", "data.unlabeled_masks": True},
    ):
        validation.validate(changed(changes), build.CHOICES)


def test_flattening_gives_every_leaf_once_under_its_dotted_name():
    flat = config.flatten(config.default_config())
    assert flat["model.width"] == 64
    assert flat["seed"] == 0
    assert flat["augment.crop_size"] == (513, 513)
    assert not any(isinstance(value, ml_collections.ConfigDict) for value in flat.values())
    assert len(flat) == len({key.lower() for key in flat})


def test_a_stored_configuration_is_read_back_equal(tmp_path):
    c = changed({"model.width": 8, "augment.crop_size": (33, 49), "data.root": "größe/ordner", "seed": 7})
    config.save(c, tmp_path / "config.json")
    back = config.load(tmp_path / "config.json")
    assert config.flatten(back) == config.flatten(c)
    assert back.augment.crop_size == (33, 49)
    assert config.differences(back, c) == []
    c.model.width = 16
    c.loss.strategy = "uniform"
    assert config.differences(back, c) == [
        "loss.strategy: 'different_image_pseudo_label' -> 'uniform'",
        "model.width: 8 -> 16",
    ]


def test_a_stored_configuration_that_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "config.json"
    stored = config.default_config().to_dict()
    for text, words in (
        (json.dumps(stored | {"sorcery": 1}), ["sorcery"]),
        (json.dumps({key: value for key, value in stored.items() if key != "seed"}), ["seed"]),
        (json.dumps(stored | {"steps": "many"}), ["steps", "many"]),
        (json.dumps(stored | {"model": 3}), ["model.width"]),
        ("[1, 2]", []),
        ("{", []),
        ("", []),
    ):
        path.write_text(text)
        with pytest.raises(UserError) as error:
            config.load(path)
        assert all(word in str(error.value) for word in [str(path), *words]), error.value


def load_file(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def variants(path):
    """Every combination of what a configuration file can be asked for, and its default."""
    module = load_file(path)
    if hasattr(module, "LISTS"):  # a dataset of the paper
        signature = inspect.signature(module.get_config).parameters["variant"]
        assert signature.default == ""
        networks = ("r50", "r101") if path.stem == "cityscapes" else ("r50", "r101", "x65")
        return ["", *(",".join(words) for words in itertools.product(networks, module.LISTS, module.RECIPES))]
    text = path.read_text()
    names = {word.split(":")[1] for word in text.split() if word.startswith(f"--config=configs/{path.name}:")}
    return [None, *sorted(names)]


@functools.cache
def trace(relevant):
    """Traces one step of a configuration; equal ones once."""
    c = config.default_config()
    with c.ignore_type():
        c.update(
            json.loads(
                relevant, object_hook=lambda x: {k: tuple(v) if isinstance(v, list) else v for k, v in x.items()}
            )
        )
    functions = build.build_functions(c, num_classes=5, ignore_id=255, shardings=parallel.make_shardings(1))
    state = jax.eval_shape(functions.init, 0)
    after, metrics = jax.eval_shape(functions.train_step, state, build.batch_shapes(c))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert all(value.shape in ((), (5,)) and value.dtype == jnp.float32 for value in metrics.values())
    return set(metrics)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_variant_of_every_file_in_configs_is_valid_and_its_step_can_be_traced(path):
    module, seen = load_file(path), set()
    for variant in variants(path):
        c = module.get_config() if variant is None else module.get_config(variant)
        assert config.flatten(c).keys() == config.flatten(config.default_config()).keys()
        if c.data.dataset == "folder":
            c.data.root = c.data.root or "somewhere"
        validation.validate(c, build.CHOICES)
        seen.add(json.dumps(c.to_dict(), sort_keys=True))
        # What is traced does not depend on these.
        c.update_from_flattened_dict({"steps": 1, "init_from": "", "data.labeled": "", "optim.weight_decay": 0.0})
        c.update_from_flattened_dict({"data.dataset": "folder", "data.unlabeled": "", "data.root": "", "data.val": ""})
        c.update_from_flattened_dict({"augment.crop_size": (97, 97), "model.head_decay": 0.9})
        c.teacher_momentum = 0.99  # with a teacher the step is all that it is without, and more
        relevant = {key: value for key, value in c.to_dict().items() if key not in ("eval", "log_every")}
        assert "loss/contrast" in trace(json.dumps(relevant, sort_keys=True))
    assert len(seen) >= len(variants(path)) - 1  # the default is one of the others


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ("r50,1_5", ["'1_5'", "1_16_2"]),
        ("r50,r101", ["'r101'", "second backbone"]),
        ("1_8,1_4,r50", ["second labeled"]),
    ],
)
def test_a_wrong_variant_is_named_with_what_there_is(variant, words):
    module = load_file(next(path for path in CONFIGS if path.stem == "voc12"))
    with pytest.raises(ValueError) as error:
        module.get_config(variant)
    assert all(word in str(error.value) for word in [f"configs/voc12.py:{variant}", *words]), error.value


def test_variants_change_what_the_paper_changes():
    voc, city, coco = (load_file(path).get_config for path in CONFIGS if path.stem in ("cityscapes", "coco", "voc12"))
    voc, city, coco = (
        next(f for f in (voc, city, coco) if f().data.dataset == name) for name in ("voc2012", "cityscapes", "coco")
    )
    assert voc("1_4,r101").model.backbone == "resnet101_beta"
    assert (voc("r50,1_8").teacher_momentum, voc("r50,1_16_1").teacher_momentum) == (0.0, 0.99)
    assert voc("train").data.labeled == "train"
    assert city("voc_like,r50").augment.crop_size == (513, 513)
    assert city("r50").steps == 90_000
    assert (coco("").model.multi_grid, coco("").optim.weight_decay) == ((1, 1, 1), 4e-5)
