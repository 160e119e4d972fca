"""Pictures that a run makes."""

import numpy as np
import pytest

from jaxdl.record.pictures import confusion_image, image_grid


def test_image_grid_places_every_image():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 4, 1), np.uint8)
    grid = image_grid(images)
    assert grid.shape == (2 * 5 + 2, 3 * 6 + 2, 3) and grid.dtype == np.uint8
    for index in range(5):
        top, left = 2 + index // 3 * 5, 2 + index % 3 * 6
        assert (grid[top : top + 3, left : left + 4] == index).all()
    with pytest.raises(ValueError, match='float64'):
        image_grid(np.zeros((1, 2, 2, 3)))


def test_confusion_image_is_darkest_where_a_row_is_concentrated():
    matrix = np.zeros((25, 25))
    matrix[np.arange(25), np.arange(25)] = 3
    matrix[3, 3], matrix[3, 7] = 0, 1000
    image = confusion_image(matrix).astype(int)
    cell = 720 // 25
    margin = image.shape[0] - 8 - 25 * cell
    centres = margin + cell // 2 + cell * np.arange(25)
    seen = image[np.ix_(centres, centres)].sum(-1) < 300
    np.testing.assert_array_equal(seen, matrix > 0)
    names = ['a cat', 'a dog']
    counts = confusion_image([[2, 1], [0, 3]], names)
    shares = confusion_image([[2 / 6, 1 / 6], [0, 3 / 6]], names)
    assert counts.shape == shares.shape and (counts != shares).any()  # 66.7 in the place of 2
    whole = confusion_image([[4, 2], [0, 6]], names)
    np.testing.assert_array_equal(whole[-5:], counts[-5:])
    with pytest.raises(ValueError, match='1 class names'):
        confusion_image(np.eye(2), ['a'])
