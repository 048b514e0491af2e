"""Heat over a picture: its place, its sides, its edges, and nothing where there is nothing."""

from __future__ import annotations

import numpy as np
import pytest

from edgefuse.runtime.heat import AGAINST, FOR, SIDE_PX, envelope, heat_over, shown


@pytest.mark.parametrize(("height", "width"), [(64, 64), (1080, 1920), (3, 700), (900, 2)])
def test_a_picture_is_shown_with_its_longer_side_at_one_length(height, width):
    found = shown(np.zeros((height, width, 3), np.uint8))

    assert max(found.shape[:2]) == SIDE_PX
    assert min(found.shape[:2]) >= 1
    assert found.shape[0] / found.shape[1] == pytest.approx(height / width, rel=0.5)


def test_enlarged_pixels_stay_what_they_are():
    pixels = np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8)

    np.testing.assert_array_equal(shown(pixels), pixels.repeat(80, axis=0).repeat(80, axis=1))


def test_cells_that_reach_over_the_edge_are_cut_there():
    falls = np.zeros((7, 14))  # of 20 x 40 pixels in cells of 3: the last row has 2 pixels, the last column 1
    falls[6, 13] = 1.0

    found = heat_over(np.full((200, 400, 3), 128, np.uint8), falls, 20, 40).astype(int)

    warm = found[:, :, 0] - found[:, :, 2]
    rows, columns = np.nonzero(warm > 0.5 * warm.max())
    assert rows.min() >= 170
    assert columns.min() >= 365
    assert warm[199, 399] == warm.max()


def test_the_sides_have_their_colours_and_no_heat_leaves_grey():
    pixels = np.full((160, 160, 3), (200, 40, 40), np.uint8)
    falls = np.zeros((16, 16))
    falls[2:7, 2:7], falls[10:15, 10:15] = 2.0, -2.0

    found = heat_over(pixels, falls, 160, 160).astype(int)

    for place, colour in (((45, 45), FOR), ((125, 125), AGAINST)):
        assert np.abs(found[place] - 0.85 * np.array(colour) - 0.15 * found[0, 159]).max() <= 1
    assert np.ptp(found[0, 159]) == 0


def test_nothing_is_drawn_on_a_flat_map_however_it_is_scaled():
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)

    found = heat_over(pixels, np.full((16, 16), 0.0099), 32, 32)

    assert np.ptp(found.astype(int), axis=2).max() == 0


@pytest.mark.parametrize(("samples", "columns"), [(1000, 10), (7, 20), (1, 3)])
def test_the_envelope_holds_every_sample_of_its_column(samples, columns):
    pcm = np.random.default_rng(1).uniform(-1, 1, samples).astype(np.float32)

    found = envelope(np.pad(pcm, (0, 1))[:-1], columns)

    assert found.shape == (columns, 2)
    assert found.min() == pcm.min()
    assert found.max() == pcm.max()
    if samples == 1000:
        np.testing.assert_array_equal(found[:, 0], pcm.reshape(10, 100).min(axis=1))
