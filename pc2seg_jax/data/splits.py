"""Which images are labelled: lists with a name, so that a result can say what it has learnt from.

A list is a published or generated one of the dataset (`names`), the rule "every 1/8 with seed 0", or a text file.

Deviation: the paper's lists of COCO 1/8 and 1/16 ("uniformly downsampled") and of Cityscapes were never published. Here
those of COCO are the rule with seed 0; for Cityscapes there are the draws of French et al. and the lists of ST++.
"""

import hashlib
import os
import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from pc2seg_jax import downloads
from pc2seg_jax.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


class Split(NamedTuple):
    """A list of images: what it is called where results are printed and saved, and the ids in their order."""

    name: str
    ids: tuple[str, ...]


class Published(NamedTuple):
    """A public list. sha256: of the whole file, so that one that changes at its address is refused, not used."""

    address: str
    count: int
    sha256: str


class Draw(NamedTuple):
    """The first `count` of the sorted ids permuted with `seed`. sha256: of the ids, each followed by a newline."""

    seed: int
    count: int
    sha256: str


_GITHUB = "https://raw.githubusercontent.com"
_PSEUDOSEG = f"{_GITHUB}/googleinterns/wss/b01acaf0317a48ed8b4a1a239a9a90bcfb0844e8/data_splits"
_VOC, _COCO = f"{_PSEUDOSEG}/pascal_voc_seg", f"{_PSEUDOSEG}/coco"
# HEAD is the default branch, which may move: safe, because content with another SHA-256 is refused.
_U2PL = f"{_GITHUB}/Haochen-Wang409/U2PL/HEAD/data/splits/pascal"
_STPP = f"{_GITHUB}/LiheYoung/ST-PlusPlus/HEAD/dataset/splits/cityscapes"

VOC2012 = {
    "1_2": Published(  # not in the commit of the others
        f"{_GITHUB}/googleinterns/wss/e2879341e87d73ed2b6d866f70c8d72c492e3235/data_splits/pascal_voc_seg/2_clean.txt",
        732,
        "5fef6d10440f157ddd4408bf72401f27c72faf4d0f5f61b26d916ad0a96a40cb",
    ),
    "1_2_u2pl": Published(  # another draw, also in ST++ and UniMatch; 371 ids are in both
        f"{_U2PL}/732/labeled.txt", 732, "b2973f8d47b780e0bc53f598a51fb651c21c7485f4d02111296452abb931ce44"
    ),
    "1_4": Published(f"{_VOC}/4_clean.txt", 366, "4b58843de93dc6927e66a6ae10e0dd257f70ddc370c0875a42a79419290d745a"),
    "1_8": Published(f"{_VOC}/8_clean.txt", 183, "7d364bb88766ba220e68e01eb066d94e714349209af73608eaf8940ca2cdedc9"),
    "1_16_0": Published(
        f"{_VOC}/16_clean_3.txt", 92, "a2a472eb74fcf8f3ec462d1151f98f68bfcbded3fbfd08c08a49b2d9d7a51ca5"
    ),
    "1_16_1": Published(
        f"{_VOC}/16_clean_14.txt", 92, "d9a31f5d479024a4bec996f9f4059ddf4877ba18383e282aa3a403b8e31e485e"
    ),
    "1_16_2": Published(
        f"{_VOC}/16_clean_20.txt", 92, "0fec5a3639a87837aea30609d25d5a45b3234e875be887c314d1808a3c9b9786"
    ),
}
CITYSCAPES = {
    f"{ratio}_stpp_{index}": Published(f"{_STPP}/{ratio}/split_{index}/labeled.txt", count, sha256)
    for ratio, index, count, sha256 in (
        ("1_30", 0, 100, "b11041fef70476fb5564af0ef006a8013622da9cf49c7faf4182f3e26eb32742"),
        ("1_30", 1, 100, "666065ac67d2d12f3cad32c1a9aacdeab80b19db24045b48fedfba4ba3c6cfe2"),
        ("1_30", 2, 100, "e5704fb194be81abd544f731f29fde3c0b4ff41e41e55cda0e9f318c4df3890d"),
        ("1_8", 0, 372, "fa79978cabe87abb8ce6dcbc9f18be69c8ce8f6515b918dfa883551be0e9bbc4"),
        ("1_8", 1, 372, "4b938635705615df8ab6351b6aa669a9f05bc89ce5f20f0a53485447869a708c"),
        ("1_8", 2, 372, "53f702a9b103270be61af3f338c857ae70bf735ff6231ac21e05c557809e72e5"),
        ("1_4", 0, 744, "c22f76d3e8d1a00749d11a61509e71e1e1851b7666adcff57b733f4fa652bab4"),
        ("1_4", 1, 744, "5a122203637aaea8551044fb507d5f258a10498421cd138e81ca9ec3c746cd39"),
        ("1_4", 2, 744, "0460f3e3bea3ea51efb154aec8636f21106371a7e90f938e6212ef4a0921b82b"),
    )
}
COCO = {
    "1_32": Published(f"{_COCO}/32_all.txt", 3697, "550f36b5eace9b69b7e5d0f0f65a417768d5143146817fa85c36e1e066a238cc"),
    "1_64": Published(f"{_COCO}/64_all.txt", 1849, "82890b4d98e8aab261a3d88100fcf2f0dff1314bd2d04afc7c5dcdd5eaf23754"),
    "1_128": Published(f"{_COCO}/128_all.txt", 925, "7619a4e8bddbde7066c16e36e97eefa2bc3077b24b06994a3647907beec91138"),
    "1_256": Published(f"{_COCO}/256_all.txt", 463, "ee7dccf67b1440e3b09ba56ada3f39010d62fc133888ebcef6e6b2e799006941"),
    "1_512": Published(f"{_COCO}/512_all.txt", 232, "fb9d176965ae8b1f8848ae944b947eebfa5fcd1948e4b3e4761aae1eff8f0a17"),
}
PUBLISHED = {"voc2012": VOC2012, "cityscapes": CITYSCAPES, "coco": COCO}

# The sets of one seed are nested.
CITYSCAPES_DRAWS = {
    "1_30_seed12345": Draw(12345, 100, "ed43b572534c4d3100dcf9b77054686dac048a13b7e46ae649395ae668c722a5"),
    "1_8_seed12345": Draw(12345, 372, "7a53f6127a31ae922382dd33ed98efaf4cf809008930e18c9c44268e14400665"),
    "1_4_seed12345": Draw(12345, 744, "06238679034e24eff52286ccf61694dafe5b6618c5bd14d1c136a8976569b962"),
    "1_30_seed23456": Draw(23456, 100, "1c47c7a1d074635fe3013b6a364ae5deac2a74daf9e767caf2b95e94c3e203e6"),
    "1_8_seed23456": Draw(23456, 372, "47c70052140049e09b511c2434b9909f547cda7772d3631a7f08b5d89f9af239"),
    "1_4_seed23456": Draw(23456, 744, "a467c27545ed39ebf10067ae431ff7f59096b63fb88f8fbb20f0045ee93853b8"),
    "1_30_seed34567": Draw(34567, 100, "e75fd39809a6bf4e2abd8fc43e38dff1fcd64651a702bf70698c4222f290edb2"),
    "1_8_seed34567": Draw(34567, 372, "89dc7054ecca3ec956dadc5a4dcf348bf7f04d0933d0a903f60e834d19f25bc7"),
    "1_4_seed34567": Draw(34567, 744, "f4a465cc956cef66251d7664516aae0489cb3e55bb4b921e94f306ac4ebec2b5"),
    "1_30_seed45678": Draw(45678, 100, "ef03af892a74b819aef49d6acb3c4c88935d623036ab799153b370e6ad8aee72"),
    "1_8_seed45678": Draw(45678, 372, "bcef0483c7bd787fe9a7c0aa51eeb5a4ff3c0fff7b3b2ab84bf027a323df6e67"),
    "1_4_seed45678": Draw(45678, 744, "210950d55b81e6012a3776d33a03afb87097afc84541054649f176c3fb43f2b0"),
    "1_30_seed56789": Draw(56789, 100, "3e0d7a42073c0aa3b65efa8b508ee232ba9523eff199edfeeece12ddf59b181e"),
    "1_8_seed56789": Draw(56789, 372, "92530f2bbd7bde2a73f03fb4189a8475562e26f56c468f77823bd4f86c7eba54"),
    "1_4_seed56789": Draw(56789, 744, "f7d6085668cdeb0aa64dd6de795fe5656fb5f3f31f58b48716c63082b3910a36"),
}
# SHA-256 of the 2,975 sorted ids, each followed by a newline.
CITYSCAPES_TRAIN = "7f56ebec1d2eb8db59a3600206fcf7f05b53a7f3a8cf66381e6de73356b9eb7a"

COCO_EVERY = {"1_8": 8, "1_16": 16}  # every 1/N with seed 0
COCO_TRAIN_COUNT = 118_287

GENERATED = {"cityscapes": CITYSCAPES_DRAWS, "coco": COCO_EVERY}
_RULE = re.compile(r"every 1/([0-9]{1,9}) with seed ([0-9]{1,10})")


def names(dataset: str | None) -> tuple[str, ...]:
    """What a list of a dataset may be called, published ones first; a user's folder (None) has no such names."""
    if dataset is None:
        return ()
    return ("train", *PUBLISHED[dataset], *GENERATED.get(dataset, ()))


def is_rule(spec: str) -> bool:
    """Whether `spec` is meant as a rule, not as a name or a file."""
    return spec.startswith("every ")


def choose(spec: str, *, dataset: str | None, train_ids: Sequence[str], root: Path | None = None) -> Split:
    """The list of images that `spec` names.

    Published lists are downloaded on first use and kept in the folder `splits` of the cache.

    Args:
      spec: one of
        - a name of `names(dataset)`; `train` is all of `train_ids`;
        - `every 1/N with seed S`: the positions 0, N, 2N, ... of `permuted(train_ids, S)`, which are ceil(n / N) ids;
        - a text file with one id per line; folders, extension, and what follows a space (a mask) are dropped from the
          lines, for a user's folder (whose ids may hold folders and spaces) only the extension of an image.
      dataset: "voc2012", "cityscapes", "coco", or None for a user's folder.
      train_ids: the n canonical ids of the training images, such as 2007_000032, aachen_000000_000019, 000000000009.
      root: where a relative path of a text file begins; None is the working directory.

    Raises:
      UserError: for an unknown name, a list that cannot be had or is not the published one, and a list with a repeated
        id, with none, or with one that is not in `train_ids`.
    """
    rule = _RULE.fullmatch(spec)
    if rule:
        every, seed = map(int, rule.groups())
        split = Split(f"every 1/{every} with seed {seed} of train", _every(spec, train_ids, every, seed))
    elif spec in names(dataset):
        split = Split(f"{dataset}/{spec}", _named(dataset, spec, train_ids))
    elif os.path.isfile(path := (root or Path()) / spec):
        split = Split(spec, _read(path, dataset))
    else:
        known = "".join(f"{name}, " for name in names(dataset))
        raise UserError(
            f"The list {spec!r} is neither a name for {_called(dataset)} nor the file {path}: "
            f"use {known}'every 1/N with seed S' with two integers, or a text file with one id per line."
        )
    _check(split, dataset, train_ids)
    return split


def permuted(ids: Sequence[str], seed: int) -> list[str]:
    """The sorted ids in the order of NumPy's legacy RandomState(seed).permutation, whose stream is frozen."""
    ids = sorted(ids)
    return [ids[index] for index in np.random.RandomState(seed).permutation(len(ids))]


def _every(spec: str, train_ids: Sequence[str], every: int, seed: int) -> tuple[str, ...]:
    if every < 1 or seed >= 2**32:
        raise UserError(f"The rule {spec!r} is impossible: N in 'every 1/N with seed S' is at least 1, S below 2^32.")
    return tuple(permuted(train_ids, seed)[::every])


def _named(dataset: str, name: str, train_ids: Sequence[str]) -> tuple[str, ...]:
    if name == "train":
        return tuple(train_ids)
    if name in PUBLISHED[dataset]:
        published = PUBLISHED[dataset][name]
        path = downloads.cache_folder() / "splits" / dataset / f"{name}.txt"
        what = f"the list {dataset}/{name} of {published.count} images"
        return _read(downloads.fetch(published.address, path, what=what, sha256=published.sha256), dataset)
    if dataset == "coco":
        _check_complete(name, dataset, train_ids, len(train_ids) == COCO_TRAIN_COUNT)
        return tuple(permuted(train_ids, 0)[:: COCO_EVERY[name]])
    _check_complete(name, dataset, train_ids, _sha256(sorted(train_ids)) == CITYSCAPES_TRAIN)
    draw = CITYSCAPES_DRAWS[name]
    ids = tuple(permuted(train_ids, draw.seed)[: draw.count])
    if _sha256(ids) != draw.sha256:
        raise UserError(
            f"NumPy {np.__version__} draws another list than {dataset}/{name}: install the version of constraints.txt."
        )
    return ids


def _check_complete(name: str, dataset: str, train_ids: Sequence[str], complete: bool) -> None:
    if not complete:
        raise UserError(
            f"The list {dataset}/{name} is drawn from the published training images of {dataset}, but these "
            f"{len(train_ids)} are others: complete the dataset, or use a rule such as 'every 1/8 with seed 0'."
        )


def _sha256(ids: Sequence[str]) -> str:
    """With a newline after the last id, too: as a text file of them would have it."""
    return hashlib.sha256("".join(f"{id_}\n" for id_ in ids).encode()).hexdigest()


def _read(path: Path, dataset: str | None) -> tuple[str, ...]:
    """Canonical ids of the lines of a file."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read the list {path} as UTF-8 text ({error}): save it as plain text.") from error
    return tuple(canonical(line.strip(), dataset) for line in lines if line.strip())


def canonical(line: str, dataset: str | None) -> str:
    """The id of an image from a line of a list; of a folder (None), its path below images/ without an ending."""
    if dataset is None:
        path = posixpath.normpath(line)  # ./a and a are one image
        stem, ending = posixpath.splitext(path)
        return stem if ending.lower() in IMAGE_SUFFIXES else path
    return PurePosixPath(line.split()[0]).stem.removesuffix("_leftImg8bit")


def _check(split: Split, dataset: str | None, train_ids: Sequence[str]) -> None:
    if not split.ids:
        raise UserError(f"The list {split.name} is empty: it must hold at least one training image.")
    if len(set(split.ids)) < len(split.ids):
        twice = next(id_ for id_, count in Counter(split.ids).items() if count > 1)
        raise UserError(f"{twice!r} is twice in the list {split.name}: remove one of them.")
    known = set(train_ids)
    missing = [id_ for id_ in split.ids if id_ not in known]
    if missing:
        raise UserError(
            f"{missing[0]!r} in the list {split.name} is not among the {len(known)} training images of "
            f"{_called(dataset)} ({len(missing)} of {len(split.ids)} ids are not): "
            "complete the training images, or correct the list."
        )


def _called(dataset: str | None) -> str:
    return dataset or "the folder"
