"""Weights by name: fetched once from where they are published, or a sentence that says how to fetch them by hand."""

import functools
import http.server
import threading

import jax
import numpy as np
import pytest
from weight_files import assert_filled, read_back, torch_file, write_torch

from pc2seg_jax.errors import UserError
from pc2seg_jax.models import create_model
from pc2seg_jax.weights import named, placement


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves tmp_path/public as the home of the name `test_weights`, with the cache in tmp_path/cache."""
    (tmp_path / "public").mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            served.append(self.path)

    served = []
    handler = functools.partial(Quiet, directory=str(tmp_path / "public"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/weights.pth"
        monkeypatch.setenv("PC2SEG_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(named, "NAMES", (*named.NAMES, "test_weights"))

        def publish(sha256=None):
            monkeypatch.setitem(named.DOWNLOADS, "test_weights", named.Download(address, 1, sha256))
            return served

        yield publish
        server.shutdown()


def test_named_weights_are_downloaded_once(tmp_path, server):
    foreign, ours = torch_file("resnet50")
    write_torch(tmp_path / "public" / "weights.pth", foreign)
    served = server()
    for _ in range(2):
        assert_filled(read_back("test_weights", "resnet50")[0], ours)
    assert served == ["/weights.pth"]
    assert (tmp_path / "cache" / "weights.pth").is_file()


def test_a_download_that_fails_says_what_to_do_by_hand(tmp_path, server):
    server()
    by_hand = f"fetch http.*weights.pth by hand and put it at {tmp_path}/cache/weights.pth"
    with pytest.raises(UserError, match=f"404.*{by_hand}"):
        named.fetch("test_weights")
    (tmp_path / "public" / "weights.pth").write_bytes(b"something else")
    server(sha256="0" * 64)
    with pytest.raises(UserError, match=f"damaged.*{by_hand}"):
        named.fetch("test_weights")
    assert list((tmp_path / "cache").iterdir()) == []


def test_every_name_has_an_address_and_a_plausible_hash():
    for name, download in named.DOWNLOADS.items():
        assert download.address.startswith(("http://download.tensorflow.org/", "https://download.pytorch.org/")), name
        if download.sha256 is not None:
            assert len(bytes.fromhex(download.sha256)) == 32
            assert f"-{download.sha256[:8]}.pth" in download.address  # torchvision's file names carry the beginning


def test_the_shipped_backbone_is_for_the_small_network():
    model = create_model(backbone="resnet26_beta", num_classes=3, width=16, multi_grid=(1, 1))
    params, batch_stats = jax.tree.map(lambda x: np.zeros(x.shape), jax.eval_shape(model.init, jax.random.key(0)))
    weights = placement.load("textures", "resnet26_beta", params, batch_stats)
    params, batch_stats, text = placement.place(weights, params, batch_stats)
    assert text == "backbone from textures"
    filled = placement.flatten(params, batch_stats)
    assert all(np.any(value) for path, value in filled.items() if "/backbone/" in path)
