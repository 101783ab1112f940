"""Weights that are known by name: one file is shipped, the others are fetched from their public address once."""

import pathlib
from typing import NamedTuple

from pc2seg_jax import downloads


class Download(NamedTuple):
    """A public file. megabytes: about. sha256: where it is known, else None."""

    address: str
    megabytes: int
    sha256: str | None = None


# The DeepLab model zoo publishes no hashes; those of torchvision begin with the digits in the file's name.
_ZOO, _TORCHVISION = "http://download.tensorflow.org/models", "https://download.pytorch.org/models"
DOWNLOADS = {
    "resnet_v1_50_beta_imagenet": Download(f"{_ZOO}/resnet_v1_50_2018_05_04.tar.gz", 274),
    "resnet_v1_101_beta_imagenet": Download(f"{_ZOO}/resnet_v1_101_2018_05_04.tar.gz", 477),
    "xception_65_imagenet": Download(f"{_ZOO}/deeplabv3_xception_2018_01_04.tar.gz", 447),
    "resnet50_imagenet1k_v1": Download(
        f"{_TORCHVISION}/resnet50-0676ba61.pth",
        103,
        "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
    ),
    "resnet50_imagenet1k_v2": Download(
        f"{_TORCHVISION}/resnet50-11ad3fa6.pth",
        103,
        "11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca",
    ),
    "resnet101_imagenet1k_v1": Download(
        f"{_TORCHVISION}/resnet101-63fe2227.pth",
        179,
        "63fe2227b86e8f1f2063f43a75c84d195911b6a0eace650907dd3dc62dd49a0a",
    ),
    "resnet101_imagenet1k_v2": Download(
        f"{_TORCHVISION}/resnet101-cd907fc2.pth",
        179,
        "cd907fc2a0de2292b2ba2b27d2216bc672d84632d1cf20058d01c0c03b5e020e",
    ),
}
SHIPPED = {"textures": pathlib.Path(__file__).parent / "resnet26_beta_w16_textures.npz"}  # resnet26_beta, width 16
NAMES = (*SHIPPED, *DOWNLOADS)


def fetch(name: str) -> pathlib.Path:
    """The file of a name of `NAMES`, downloaded where it is not yet in the cache.

    Raises:
      UserError: when it cannot be downloaded, or is not the published file; it says what to fetch and where to put it.
    """
    if name in SHIPPED:
        return SHIPPED[name]
    download = DOWNLOADS[name]
    return downloads.fetch(
        download.address,
        downloads.cache_folder() / download.address.rsplit("/", 1)[-1],
        what=f"the weights {name!r} (about {download.megabytes} MB)",
        sha256=download.sha256,
    )
