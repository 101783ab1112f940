"""Images as they are decoded for training: as prediction sees them, and damaged ones never."""

import cv2
import numpy as np
from PIL import Image

from pc2seg_jax.data import photos, sources
from pc2seg_jax.errors import UserError


def test_a_damaged_jpeg_is_an_array_or_an_error(tmp_path):
    """OpenCV gives None for some of them, and invents the rest of others; the check finds both."""
    path, rng = tmp_path / "a.jpg", np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(path)
    whole, nothing = path.read_bytes(), 0
    for place in rng.integers(2, len(whole) - 2, 400):
        damaged = whole[:place] + bytes([rng.integers(256)]) + whole[place + 1 :]
        path.write_bytes(damaged)
        nothing += cv2.imdecode(np.frombuffer(damaged, np.uint8), cv2.IMREAD_COLOR) is None
        try:
            sources.check_image(path)
        except UserError:
            continue
        with Image.open(path) as image:
            np.testing.assert_array_equal(sources.decode_image(path), np.asarray(image.convert("RGB")))
    assert nothing > 10


def test_transparent_pixels_are_what_prediction_sees(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    pixels[:3, :, 3], pixels[6:, :, 3] = 0, 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    seen = sources.decode_image(tmp_path / "a.png")
    assert not seen[:3].any()
    np.testing.assert_array_equal(seen[6:], pixels[6:, :, :3])
    np.testing.assert_allclose(seen[3:6], pixels[3:6, :, :3] * (pixels[3:6, :, 3:] / 255), atol=1)
    np.testing.assert_array_equal(seen, photos.as_rgb(tmp_path / "a.png"))
