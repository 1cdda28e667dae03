import math

import pytest
import torch

from tiprctl.config import AugmentConfig
from tiprctl.data.transforms import augment, erase_, flip, jitter, shift
from tiprctl.pixels import MEAN, STD, channels, normalise

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


@pytest.mark.parametrize("size", [(0, 3, 4, 4), (5, 3, 7, 3), (3, 3, 300, 100), (1, 3, 400, 200)])
def test_normalise_is_the_same_a_few_images_at_a_time(size):
    pixels = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator())
    normalised = normalise(pixels)
    assert normalised.dtype == torch.float32
    assert torch.equal(normalised, normalise(pixels.float() / 255))


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


@pytest.mark.parametrize("reach", [1, 6, 30])
def test_shift_pads_and_crops_at_the_drawn_places(pixels, reach):
    """Also further than the image is wide, which leaves some images black."""
    tops, lefts = ((torch.rand(64, generator=drawn) * (2 * reach + 1)).long() for drawn in [generator()] for _ in "yx")
    padded = torch.nn.functional.pad(pixels, (reach, reach, reach, reach))
    expected = [image[:, top : top + 12, left : left + 6] for image, top, left in zip(padded, tops, lefts)]
    assert torch.equal(shift(pixels, reach, generator()), torch.stack(expected))


def test_jitter_scales_each_channel_within_its_bounds():
    images = torch.full((200, 3, 1, 1), 0.5)
    factors = jitter(images, 0.1, generator()) / 0.5
    assert factors.min() >= 0.9 - 1e-6
    assert factors.max() <= 1.1 + 1e-6
    assert factors.std() > 0.04


def test_erase_fills_one_rectangle_of_the_asked_area():
    images = torch.ones(300, 3, 48, 24)
    erased = erase_(images.clone(), 0.5, (0.02, 0.4), (7.0, 8.0, 9.0), generator())
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


def uniform_on(values, low, high):
    """Whether samples look uniform from `low` to `high`: their distribution is within Kolmogorov's bound of 0.1%."""
    places = ((values.double().sort().values - low) / (high - low)).clamp(0, 1)
    expected = (torch.arange(len(values), dtype=torch.float64) + 0.5) / len(values)
    return (places - expected).abs().max() < 1.95 / len(values) ** 0.5


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.5, 1.0])
def test_rate_of_mirrored_images(probability):
    count = 20_000
    pixels = torch.tensor([0, 1], dtype=torch.uint8).expand(count, 3, 1, 2)
    rate = flip(pixels, probability, generator())[:, 0, 0, 0].double().mean().item()
    assert abs(rate - probability) <= 4 * (probability * (1 - probability) / count) ** 0.5


def test_shifts_are_uniform_and_independent():
    """A single bright pixel tells where each image went; all 21 x 21 places are as likely."""
    count, reach, side = 40_000, 10, 21
    pixels = torch.zeros(count, 1, side, side, dtype=torch.uint8)
    pixels[:, :, reach, reach] = 1
    where = shift(pixels, reach, generator()).flatten(1)
    assert (where.sum(dim=1) == 1).all()
    counts = where.argmax(dim=1).bincount(minlength=side**2).double()
    expected = count / side**2
    # Chi-squared with 440 degrees of freedom: mean 440, standard deviation 29.7.
    assert abs(((counts - expected) ** 2 / expected).sum() - 440) < 4 * 29.7


@pytest.mark.parametrize("strength", [0.1, 0.4])
def test_jitter_is_uniform_in_each_channel(strength):
    factors = jitter(torch.full((4000, 3, 1, 1), 0.5), strength, generator()) / 0.5
    for channel in factors.flatten(1).unbind(1):
        assert uniform_on(channel, 1 - strength, 1 + strength)
    correlation = torch.corrcoef(factors.flatten(1).T)
    assert (correlation - torch.eye(3)).abs().max() < 0.08


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_rate_of_erased_images(probability):
    count = 4000
    erased = erase_(torch.ones(count, 3, 16, 8), probability, (0.1, 0.3), (0.0, 0.0, 0.0), generator())
    rate = (erased[:, 0] == 0).flatten(1).any(dim=1).double().mean().item()
    assert abs(rate - probability) <= 4 * (probability * (1 - probability) / count) ** 0.5


def test_area_aspect_and_place_of_what_is_erased():
    """On a square image no rectangle of these areas is cut, so that they show the distributions they are drawn from."""
    count, side, area = 2000, 200, (0.02, 0.25)
    erased = erase_(torch.ones(count, 3, side, side), 1.0, area, (0.0, 0.0, 0.0), generator())
    hidden = erased[:, 0] == 0
    tall, wide = (hidden.any(dim=dim).sum(dim=1).double() for dim in (2, 1))
    assert uniform_on(tall * wide / side**2, *area)
    assert uniform_on((tall / wide).log(), math.log(0.3), math.log(3.3))
    top, left = (hidden.any(dim=dim).int().argmax(dim=1).double() for dim in (2, 1))
    assert uniform_on((top + 0.5) / (side - tall + 1), 0, 1)
    assert uniform_on((left + 0.5) / (side - wide + 1), 0, 1)


def test_pixels_that_are_erased_or_shifted_in_are_the_recipes():
    """What is shifted in is black before it is normalised; what is erased is the mean after it."""
    white = torch.full((200, 3, 12, 6), 255, dtype=torch.uint8)
    black, bright = (normalise(torch.full((1, 3, 1, 1), value, dtype=torch.uint8)) for value in (0, 255))
    config = AugmentConfig(pad=4, erase=0.5, erase_area=(0.1, 0.2))
    changed = augment(white, config, generator())
    kinds = [(changed - kind).abs().amax(dim=1) < 1e-6 for kind in (black, bright, torch.zeros(1, 3, 1, 1))]
    assert torch.stack(kinds).sum(dim=0).eq(1).all()
    assert all(kind.any() for kind in kinds)


def test_the_numbers_of_channels_are_copied_once_and_let_gradients_pass():
    with torch.inference_mode():
        first = channels((0.25, 0.5, 0.75), torch.zeros(1))
    assert channels((0.25, 0.5, 0.75), torch.zeros(7)) is first
    assert channels((0.25, 0.5, 0.75), torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
    images = torch.ones(2, 3, 4, 4, requires_grad=True)
    (images * first).sum().backward()
    assert images.grad[0, :, 0, 0].tolist() == [0.25, 0.5, 0.75]
