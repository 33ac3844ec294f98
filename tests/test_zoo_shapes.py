"""The drawn scenes of shapes: masks and boxes say where things are."""

from __future__ import annotations

import numpy as np
import pytest

import ingot

pytest.importorskip("PIL.Image")

from ingot.zoo.shapes import SHAPES, draw_scene


def test_the_same_seed_draws_the_same_scene():
    first, second, other = (draw_scene(seed) for seed in ((1, 2), (1, 2), (1, 3)))

    assert np.array_equal(np.asarray(first.image), np.asarray(second.image))
    assert np.array_equal(first.mask, second.mask)
    assert np.array_equal(first.boxes, second.boxes)
    assert not np.array_equal(np.asarray(first.image), np.asarray(other.image))


@pytest.mark.parametrize("number", range(len(SHAPES)))
def test_the_box_of_one_object_is_that_of_its_mask(number):
    for seed in range(5):
        scene = draw_scene((seed,), (48, 72), SHAPES, objects=(1, 1))
        rows, columns = np.nonzero(scene.mask)
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]

        assert scene.mask.shape == (48, 72)
        assert scene.image.size == (72, 48)
        assert scene.boxes.tolist() == [expected]
        assert set(scene.mask.ravel().tolist()) == {0, scene.labels[0]}
    only = draw_scene((9, number), shapes=[SHAPES[number]], objects=(1, 1))
    assert only.labels.tolist() == [1]


def test_boxes_lie_within_the_image_and_hidden_objects_have_none():
    counts = []
    for seed in range(60):
        scene = draw_scene((seed, 7), objects=(3, 3), scale=(0.5, 0.7))
        assert scene.boxes.shape == (len(scene.labels), 4)
        assert (scene.boxes >= 0).all()
        assert (scene.boxes <= 64).all()
        assert (scene.boxes[:, 2:] > scene.boxes[:, :2]).all()
        assert set(scene.labels.tolist()) <= set(scene.mask.ravel().tolist())
        counts.append(len(scene.labels))
    assert min(counts) < 3
    assert max(counts) == 3


def test_an_unknown_shape_is_named():
    with pytest.raises(ingot.UsageError, match="found 'cirle'") as caught:
        draw_scene((0,), shapes=["cirle"])

    assert caught.value.hint == "did you mean 'circle'?"
