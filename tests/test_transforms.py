import pytest
import torch

from tiprctl.config import AugmentConfig
from tiprctl.data.transforms import augment, erase, flip, jitter, shift
from tiprctl.pixels import MEAN, STD, normalise

OFF = AugmentConfig(flip=0, pad=0, jitter=0, erase=0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (64, 3, 12, 6), dtype=torch.uint8, generator=generator())


def test_normalise_is_clips():
    image = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    expected = [(1 - mean) / std for mean, std in zip(MEAN, STD)]
    torch.testing.assert_close(normalise(image)[0, :, 0, 0], torch.tensor(expected))


def test_without_changes_only_normalisation_is_left(pixels):
    torch.testing.assert_close(augment(pixels, OFF, generator()), normalise(pixels))


def test_the_batch_is_not_changed(pixels):
    before = pixels.clone()
    augment(pixels, AugmentConfig(pad=2, jitter=0.1), generator())
    assert torch.equal(pixels, before)


def test_augmentation_depends_on_the_generator_alone(pixels):
    config = AugmentConfig(pad=2, jitter=0.1)
    first, again, other = (augment(pixels, config, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_flip_mirrors_whole_images(pixels):
    flipped = flip(pixels, 0.5, generator())
    mirrored = [torch.equal(after, before.flip(-1)) for before, after in zip(pixels, flipped)]
    kept = [torch.equal(after, before) for before, after in zip(pixels, flipped)]
    assert all(a != b for a, b in zip(mirrored, kept))
    assert 16 < sum(mirrored) < 48


def test_shift_is_a_crop_of_the_padded_image(pixels):
    seen = set()
    for before, after in zip(pixels, shift(pixels, 2, generator())):
        padded = torch.nn.functional.pad(before, (2, 2, 2, 2))
        places = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(after, padded[:, top : top + 12, left : left + 6])
        ]
        assert places
        seen |= set(places)
    assert len(seen) > 15


def test_jitter_scales_each_channel_within_its_bounds():
    images = torch.full((200, 3, 1, 1), 0.5)
    factors = jitter(images, 0.1, generator()) / 0.5
    assert factors.min() >= 0.9 - 1e-6
    assert factors.max() <= 1.1 + 1e-6
    assert factors.std() > 0.04


def test_erase_fills_one_rectangle_of_the_asked_area():
    images = torch.ones(300, 3, 48, 24)
    erased = erase(images, 0.5, (0.02, 0.4), (7.0, 8.0, 9.0), generator())
    hidden = erased[:, 0] == 7
    shares = hidden.float().mean(dim=(1, 2))
    hit = shares > 0
    assert 110 < hit.sum() < 190
    assert shares.max() <= 0.45
    assert torch.equal(erased[:, 1] == 8, hidden)
    assert torch.equal(erased[:, 2] == 9, hidden)
    for mask in hidden[hit]:
        rows, columns = mask.any(dim=1), mask.any(dim=0)
        assert torch.equal(mask, rows[:, None] & columns[None, :])
        assert (rows.int().diff().abs().sum() <= 2) and (columns.int().diff().abs().sum() <= 2)


def test_erasing_hides_under_the_mean_colour_unless_the_published_numbers_are_asked_for(pixels):
    always = {"flip": 0, "pad": 0, "erase": 1.0, "erase_area": (0.3, 0.4)}
    ours = augment(pixels, AugmentConfig(**always), generator())
    published = augment(pixels, AugmentConfig(**always, erase_fill="published"), generator())
    assert (ours == 0).all(dim=1).flatten(1).any(dim=1).all()
    fill = torch.tensor(MEAN).view(1, 3, 1, 1)
    assert (published == fill).all(dim=1).flatten(1).any(dim=1).all()
