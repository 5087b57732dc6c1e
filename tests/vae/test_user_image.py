"""A user's own image as a top half: sizes, colours, transparency, and files that are none."""

import numpy as np
import pytest
from PIL import Image

from gdregs.vae.data.user_image import read_top_half
from gdregs.vae.errors import UserError

SHAPE = (28, 28)


def save(path, array, mode=None):
    Image.fromarray(np.asarray(array, np.uint8), mode).save(path)
    return path


@pytest.fixture
def drawing():
    """Light ink, 28x28: a stroke in the top half, another below."""
    image = np.zeros(SHAPE)
    image[4:8, 5:20] = 255
    image[20:24, 3:9] = 200
    return image


def test_a_whole_image_gives_its_top_half(tmp_path, drawing):
    top = read_top_half(save(tmp_path / "a.png", drawing), SHAPE)
    np.testing.assert_array_equal(top, drawing[:14])


def test_a_top_half_is_taken_as_it_is(tmp_path, drawing):
    top = read_top_half(save(tmp_path / "a.png", drawing[:14]), SHAPE)
    np.testing.assert_array_equal(top, drawing[:14])


def test_dark_ink_on_light_paper_is_turned_round(tmp_path, drawing):
    path = save(tmp_path / "a.png", 255 - drawing)
    np.testing.assert_array_equal(read_top_half(path, SHAPE), drawing[:14])
    np.testing.assert_array_equal(read_top_half(path, SHAPE, "dark"), drawing[:14])
    np.testing.assert_array_equal(read_top_half(path, SHAPE, "light"), 255 - drawing[:14])


def test_other_sizes_are_averaged_over_areas(tmp_path, drawing):
    large = np.kron(drawing, np.ones((10, 10)))
    np.testing.assert_array_equal(
        read_top_half(save(tmp_path / "a.png", large), SHAPE), drawing[:14]
    )


def test_colours_and_transparency(tmp_path, drawing):
    """A drawing program's export: black strokes on transparent paper."""
    rgba = np.zeros((*SHAPE, 4))
    rgba[..., 3] = drawing
    top = read_top_half(save(tmp_path / "a.png", rgba), SHAPE, "dark")
    np.testing.assert_array_equal(top, drawing[:14])
    coloured = np.stack([255 - drawing, 255 - drawing, np.full(SHAPE, 255)], axis=-1)
    top = read_top_half(save(tmp_path / "b.png", coloured), SHAPE)
    assert top[5, 10] > 200
    assert top[0, 0] == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no image", "cannot be read as a PNG image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "cannot be read as a PNG image"),
        (None, "does not exist"),
    ],
)
def test_files_that_are_no_images(tmp_path, content, message):
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_top_half(path, SHAPE)


def test_a_truncated_image(tmp_path, drawing):
    path = save(tmp_path / "a.png", np.random.default_rng(0).integers(0, 255, (280, 280)))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="cannot be read as a PNG image"):
        read_top_half(path, SHAPE)


def test_other_proportions_say_which_would_do(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((30, 80)))
    message = r"is 80x30 .* whole image, 28x28, or of its top half, 28x14"
    with pytest.raises(UserError, match=message):
        read_top_half(path, SHAPE)
