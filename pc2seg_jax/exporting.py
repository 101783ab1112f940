"""Writes a trained model in formats that run elsewhere, and compares every one of them with the checkpoint."""

import contextlib
import hashlib
import importlib
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from pc2seg_jax import __version__, build, exported, onnx_file, saved_model
from pc2seg_jax.any_size import infer, padded_side
from pc2seg_jax.errors import UserError
from pc2seg_jax.inference import predict_probabilities
from pc2seg_jax.models.functional import Model
from pc2seg_jax.restoring import Run
from pc2seg_jax.types import Tree
from pc2seg_jax.weights import placement

NETWORKS = ("student", "teacher")
PLACES = ("inside", "beside")
PLATFORMS = ("cpu", "cuda", "tpu")
TOLERANCE = 1e-4
PART = ".export.part"
# [B, h, w] of what is compared: sides that need padding and sides that need none, one image and several.
SIZES = ((1, 97, 129), (2, 60, 75), (1, 33, 150))

# The packages of every format that a user may lack.
PACKAGES = {"stablehlo": (), "onnx": ("onnx", "onnxruntime"), "saved_model": ("tensorflow",)}
FORMATS = tuple(PACKAGES)


class Network(NamedTuple):
    """What is exported.

    model: computes in float32. weights: {path: float32 array}, without the projections of the contrastive loss, which
      do nothing here. projection: their shapes. mean_pixel: RGB 0..255.
    """

    model: Model
    weights: dict[str, np.ndarray]
    projection: Tree
    mean_pixel: tuple[float, float, float]

    def trees(self, weights: dict) -> tuple[Tree, Tree]:
        """(params, batch_stats) of such weights."""
        params, batch_stats = placement.unflatten(weights)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), self.projection)
        return params | {"projection": zeros}, batch_stats

    def infer(self, weights: dict, images: jax.Array) -> jax.Array:
        """Probabilities of images [B, h, w, 3] uint8 of any size."""
        return infer(self.model, *self.trees(weights), images, mean_pixel=self.mean_pixel)

    def whole(self) -> Callable[[jax.Array], jax.Array]:
        """`infer` with the weights inside."""
        return lambda images: self.infer(self.weights, images)


def check_packages(formats: Sequence[str]) -> None:
    """Checks that the formats are known and their packages installed.

    Raises:
      UserError: naming what is not.
    """
    unknown = [name for name in formats if name not in PACKAGES]
    if unknown or not formats:
        raise UserError(f"--formats={','.join(formats)} is expected to name some of: {', '.join(FORMATS)}")
    for name in formats:
        for package in PACKAGES[name]:
            try:
                importlib.import_module("pc2seg_jax.data.quiet_tensorflow" if package == "tensorflow" else package)
            except ImportError as error:
                raise UserError(
                    f"--formats={','.join(formats)} needs the package {package}, which cannot be imported ({error}): "
                    f"pip install {package}, or leave {name} out"
                ) from error


def check_output(output: pathlib.Path, *, overwrite: bool) -> None:
    """Checks that `output` can be written without losing anything that is not an earlier export.

    Raises:
      UserError: when it is a file, or a folder with something in it that may not be replaced.
    """
    if not output.exists():
        return
    if not output.is_dir():
        raise UserError(f"--output={output} is not a folder: name another one")
    present = _files(output)
    if not present:
        return
    if not overwrite:
        raise UserError(
            f"--output={output} exists and is not empty: name a new or an empty folder, or replace an earlier export "
            "with --overwrite"
        )
    if exported.DESCRIPTION not in present:
        raise UserError(f"--output={output} is not an earlier export and stays as it is: name a new or an empty folder")
    known = exported.read_description(output)["files"]
    for name, path in present.items():
        changed = name in known and exported.sha256(path) != known[name]
        if changed or name not in (*known, exported.DESCRIPTION):
            what = "was changed since it was exported" if changed else "is not a part of an export"
            raise UserError(f"{path} {what} and is not replaced: move it, or name another --output")


def _files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Every file of a folder by its path inside, but for those that `_written_whole` is about to remove."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())
    paths = (path for path in found if folder / PART not in path.parents)
    return {path.relative_to(folder).as_posix(): path for path in paths}


def take_network(run: Run, which: str) -> Network:
    """The student or the teacher of a run, computing in float32 whatever it was trained in.

    Raises:
      UserError: when the run keeps no teacher.
    """
    run = run.with_network(which)
    config = run.config.copy_and_resolve_references()
    config.model.dtype = "float32"
    flat = placement.flatten(run.params, run.batch_stats)
    weights = {path: np.asarray(value) for path, value in flat.items() if not path.startswith("params/projection/")}
    model = build.build_model(config, len(run.info.class_names))
    projection = jax.eval_shape(model.init, jax.random.key(0))[0]["projection"]
    return Network(model, weights, projection, build.mean_pixel(config))


def describe(run: Run, network: Network, which: str, formats: Sequence[str]) -> dict:
    """model.json, but for what is known when the files are written: their check sums and the differences."""
    return {
        "kind": exported.KIND,
        "layout": exported.LAYOUT,
        "class_names": list(run.info.class_names),
        "palette": np.asarray(run.info.palette).tolist(),
        "ignore_id": run.info.ignore_id,
        "mean_pixel": list(network.mean_pixel),
        "step": run.step,
        "network": which,
        "backbone": run.config.model.backbone,
        "config_sha256": hashlib.sha256(json.dumps(run.config.to_dict(), sort_keys=True).encode()).hexdigest(),
        "versions": {"pc2seg_jax": __version__, "jax": jax.__version__},
        "formats": list(formats),
        "input": {"name": "images", "type": "uint8", "shape": ["batch", "height", "width", 3], "colors": "RGB"},
        "output": {
            "name": "probabilities",
            "type": "float32",
            "shape": ["batch", "height", "width", len(run.info.class_names)],
        },
        "preprocessing": "none is needed: images of any size, as they are decoded. Inside: padding at the bottom and "
        "right with mean_pixel to sides of the form 16k + 1, normalisation, and afterwards corner-aligned bilinear "
        "resizing of the logits, softmax, and the padding cut off",
        "largest_side_when_trained": run.config.data.max_side or None,
    }


def write_stablehlo(network: Network, folder: pathlib.Path, weights: str) -> None:
    """Writes the program, and beside it the weights where they are not inside."""
    images = symbolic_images()
    if weights == "beside":
        shapes = {path: jax.ShapeDtypeStruct(value.shape, value.dtype) for path, value in network.weights.items()}
        program = jax.export.export(jax.jit(network.infer), platforms=PLATFORMS)(shapes, images)
        placement.save(folder / exported.WEIGHTS, network.weights, np.float32)
    else:
        program = jax.export.export(jax.jit(network.whole()), platforms=PLATFORMS)(images)
    (folder / exported.STABLEHLO).write_bytes(program.serialize())
    source = pathlib.Path(__file__).with_name(exported.EXAMPLE)
    (folder / exported.EXAMPLE).write_text(source.read_text())


def symbolic_images() -> jax.ShapeDtypeStruct:
    """Images [b, h, w, 3] uint8 of any size."""
    return jax.ShapeDtypeStruct((*jax.export.symbolic_shape("b, h, w"), 3), jnp.uint8)


def sample_images(size: tuple[int, int, int]) -> np.ndarray:
    """Images [B, h, w, 3] uint8 to compare with: patches of colour under noise, the same for every call."""
    rng = np.random.default_rng(size)
    batch, height, width = size
    patches = rng.integers(0, 256, (batch, -(-height // 16), -(-width // 16), 3))
    patches = patches.repeat(16, 1).repeat(16, 2)[:, :height, :width]
    return np.clip(patches + rng.normal(0, 20, (*size, 3)), 0, 255).astype(np.uint8)


def reference(network: Network) -> Callable[[np.ndarray], np.ndarray]:
    """The checkpoint's own probabilities: padded by numpy, sizes known to the compiler, as in evaluation."""

    @jax.jit
    def forward(weights: dict, images: jax.Array) -> jax.Array:
        return predict_probabilities(network.model, *network.trees(weights), images)

    def probabilities(images: np.ndarray) -> np.ndarray:
        batch, height, width, _ = images.shape
        shape = batch, padded_side(height), padded_side(width), 3
        canvas = np.broadcast_to(np.float32(network.mean_pixel), shape).copy()
        canvas[:, :height, :width] = images
        return np.asarray(forward(network.weights, canvas))[:, :height, :width]

    return probabilities


def compare(network: Network, folder: pathlib.Path, formats: Sequence[str]) -> dict[str, float]:
    """The largest difference between the probabilities of every format and the checkpoint's, over `SIZES`.

    Raises:
      UserError: when it is above `TOLERANCE`.
    """
    opened = {
        "stablehlo": lambda: exported.load_export(folder).probabilities,
        "onnx": lambda: onnx_file.open_onnx(folder / exported.ONNX),
        "saved_model": lambda: saved_model.open_saved_model(folder / exported.SAVED_MODEL),
    }
    own = reference(network)
    expected = [(images, own(images)) for images in map(sample_images, SIZES)]
    differences = {}
    for name in formats:
        probabilities = opened[name]()
        difference = max(float(np.abs(probabilities(images) - right).max()) for images, right in expected)
        if not difference <= TOLERANCE:  # not: nan
            raise UserError(
                f"--formats: {name} differs from the checkpoint by {difference:.1e}, expected at most {TOLERANCE:.0e}, "
                "so nothing was written: leave it out, and report it with the run's config.json"
            )
        differences[name] = difference
    return differences


def export_run(
    run: Run, output: pathlib.Path, *, which: str, formats: Sequence[str], weights: str, overwrite: bool = False
) -> dict[str, float]:
    """Writes an export, all of it or nothing.

    Args:
      which: of `NETWORKS`. formats: of `FORMATS`. weights: of `PLACES`, of the StableHLO program.
      overwrite: replace an earlier export.

    Returns:
      The largest difference from the checkpoint's probabilities for every format.

    Raises:
      UserError: when the output is in use, a package is missing, or a format differs by more than `TOLERANCE`.
    """
    check_packages(formats)
    check_output(output, overwrite=overwrite)
    network = take_network(run, which)
    description = describe(run, network, which, formats)
    # The programs are float32 on every platform: without this, matrix units of GPUs and TPUs would round their inputs.
    with _written_whole(output, overwrite=overwrite) as folder, jax.default_matmul_precision("highest"):
        path = folder / exported.DESCRIPTION
        _write_description(path, description)
        if "stablehlo" in formats:
            write_stablehlo(network, folder, weights)
        if "onnx" in formats:
            onnx_file.write_onnx(network.whole(), symbolic_images(), folder / exported.ONNX, description=description)
        if "saved_model" in formats:
            saved_model.write_saved_model(
                network.infer,
                network.weights,
                symbolic_images(),
                folder / exported.SAVED_MODEL,
                platforms=PLATFORMS,
                description=path,
            )
        description["files"] = {name: exported.sha256(file) for name, file in _files(folder).items() if file != path}
        _write_description(path, description)  # `compare` opens the folder as anybody does
        differences = compare(network, folder, formats)
        _write_description(path, description | {"largest_difference": differences, "tolerance": TOLERANCE})
    return differences


def _write_description(path: pathlib.Path, description: dict) -> None:
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in description.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


@contextlib.contextmanager
def _written_whole(output: pathlib.Path, *, overwrite: bool) -> Iterator[pathlib.Path]:
    """A folder inside `output`, whose files move to `output` at the end, model.json last, or are removed on error.

    Inside, because `output` may be a disk of its own.
    """
    made, part = not output.exists(), output / PART
    shutil.rmtree(part, ignore_errors=True)  # of an export that was killed
    part.mkdir(parents=True)
    try:
        yield part
        check_output(output, overwrite=overwrite)  # minutes have passed
        for path in sorted(output.iterdir(), key=lambda path: path.name != exported.DESCRIPTION):
            if path != part:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in sorted(part.iterdir(), key=lambda path: path.name == exported.DESCRIPTION):
            path.rename(output / path.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if made and not any(output.iterdir()):
            output.rmdir()
