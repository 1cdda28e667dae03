import numpy as np
import pytest

from tiprctl.config import SamplingConfig
from tiprctl.data.samplers import epoch_batches
from tiprctl.errors import UsageError

PIDS = np.repeat(np.arange(30), np.random.default_rng(0).integers(2, 9, 30))
LENGTHS = np.random.default_rng(1).integers(5, 77, len(PIDS))


def draw(epoch=0, seed=0, batch_size=16, **sampling):
    return epoch_batches(
        LENGTHS, PIDS, batch_size=batch_size, config=SamplingConfig(**sampling), seed=seed, epoch=epoch
    )


def test_random_batches_use_each_caption_at_most_once_and_drop_only_the_rest():
    batches = draw()
    used = np.concatenate(batches)
    assert {len(batch) for batch in batches} == {16}
    assert len(np.unique(used)) == len(used) == len(PIDS) // 16 * 16


@pytest.mark.parametrize("sampler", ["random", "identity"])
def test_batches_depend_on_seed_and_epoch_alone(sampler):
    first, again, later, other = (np.stack(draw(sampler=sampler, **at)) for at in ({}, {}, {"epoch": 1}, {"seed": 1}))
    assert (first == again).all()
    assert not np.array_equal(first, later)
    assert not np.array_equal(first, other)


def test_buckets_hold_captions_of_like_length():
    spread = [np.mean([np.ptp(LENGTHS[batch]) for batch in draw(bucket=bucket)]) for bucket in (1, 8)]
    assert spread[1] < spread[0] / 2


def test_identity_batches_hold_whole_groups():
    for batch in draw(sampler="identity", per_identity=4):
        pids, counts = np.unique(PIDS[batch], return_counts=True)
        assert (counts % 4 == 0).all()
        assert len(pids) <= 4


def test_identity_batches_repeat_captions_only_of_small_identities():
    used = np.concatenate(draw(sampler="identity", per_identity=4))
    sizes = np.bincount(PIDS)
    repeated = [caption for caption in np.unique(used) if (used == caption).sum() > 1]
    assert repeated
    assert all(sizes[PIDS[caption]] < 4 for caption in repeated)


def test_too_large_a_batch_says_what_fits():
    with pytest.raises(UsageError, match=f"at most {len(PIDS)}"):
        draw(batch_size=1000)


def test_identity_batches_must_divide():
    with pytest.raises(UsageError, match="multiple of 3"):
        draw(sampler="identity", per_identity=3)
