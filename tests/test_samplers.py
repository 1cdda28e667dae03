import re

import numpy as np
import pytest

from tiprctl.config import SamplingConfig
from tiprctl.data.samplers import check_shares, epoch_batches
from tiprctl.errors import UsageError
from tiprctl.shares import Share

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


@pytest.mark.parametrize("sampler", ["random", "identity", "pairs"])
def test_batches_depend_on_seed_and_epoch_alone(sampler):
    first, again, later, other = (
        np.concatenate(draw(sampler=sampler, **at)) for at in ({}, {}, {"epoch": 1}, {"seed": 1})
    )
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


@pytest.mark.parametrize("sampler", ["random", "identity", "pairs"])
def test_every_epoch_has_as_many_batches(sampler):
    assert len({len(draw(sampler=sampler, epoch=epoch)) for epoch in range(20)}) == 1


@pytest.mark.parametrize("epoch", range(5))
def test_pairs_hold_half_as_many_identities_with_one_or_two_captions_each(epoch):
    batches = draw(sampler="pairs", epoch=epoch)
    for batch in batches:
        pids, counts = np.unique(PIDS[batch], return_counts=True)
        assert len(pids) == 8
        assert set(counts) <= {1, 2}
        assert 8 <= len(batch) <= 16
    used = np.concatenate(batches)
    assert len(np.unique(used)) == len(used) > 0.9 * len(PIDS)


def test_pairs_draw_ones_and_twos_about_equally_often_and_identities_evenly():
    batches = [batch for epoch in range(40) for batch in draw(sampler="pairs", epoch=epoch)]
    counts = np.concatenate([np.unique(PIDS[batch], return_counts=True)[1] for batch in batches])
    assert np.mean(counts == 2) == pytest.approx(0.5, abs=0.05)
    uses = np.bincount(np.concatenate(batches), minlength=len(PIDS)) / 40
    assert uses.min() > 0.75


@pytest.mark.parametrize(
    ("sizes", "batch_size", "steps"),
    [
        ([6, 1, 1, 1], 4, 3),  # the large identity has four groups, the small ones can fill up but three batches
        ([50, 3, 3, 3], 8, 2),
        ([1] * 10, 4, 5),
        ([2] * 4, 8, 1),
    ],
)
def test_pairs_fill_as_many_batches_as_there_can_be(sizes, batch_size, steps):
    pids = np.repeat(np.arange(len(sizes)), sizes)
    for epoch in range(10):
        batches = epoch_batches(
            np.ones(len(pids)), pids, batch_size=batch_size, config=SamplingConfig(sampler="pairs"), seed=0, epoch=epoch
        )
        assert [len(np.unique(pids[batch])) for batch in batches] == [batch_size // 2] * steps


def test_pairs_must_halve():
    with pytest.raises(UsageError, match=r"cannot be halved[\s\S]*Choose 14 or 16"):
        draw(sampler="pairs", batch_size=15)


def test_pairs_want_as_many_identities_as_half_a_batch():
    assert draw(sampler="pairs", batch_size=60)
    with pytest.raises(UsageError, match=r"30 identities[\s\S]*at most 60"):
        draw(sampler="pairs", batch_size=62)


@pytest.mark.parametrize("sampler", ["random", "identity", "pairs"])
def test_shares_of_a_batch_are_the_batch_whatever_their_number(sampler):
    sizes = set()
    for batch in draw(sampler=sampler, batch_size=16):
        shares = [share.of(batch) for share in Share.whole(len(batch)).split(4)]
        assert np.array_equal(np.concatenate(shares), batch)
        assert min(map(len, shares)) >= 2
        sizes |= {len(share) for share in shares}
    assert sizes == ({2, 3, 4} if sampler == "pairs" else {4})


@pytest.mark.parametrize(
    ("sampler", "batch_size", "processes", "remedy"),
    [
        ("random", 10, 4, "8 or 12"),
        ("random", 3, 4, "4 or 8"),
        ("identity", 16, 3, "12 or 24"),
        ("pairs", 10, 3, "6 or 12"),
        ("pairs", 4, 4, "8 or 12"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused_with_the_nearest_that_can(sampler, batch_size, processes, remedy):
    config = SamplingConfig(sampler=sampler, per_identity=4)
    with pytest.raises(UsageError) as error:
        check_shares(batch_size, config, processes)
    assert f"Choose {remedy}:" in error.value.remedy
    for size in map(int, remedy.split(" or ")):
        check_shares(size, config, processes)
    check_shares(batch_size, config, 1)


@pytest.mark.parametrize(
    ("sampler", "batch_size", "processes", "remedy"),
    [
        ("random", 16, 12, "1, 2, 4, 8 or 16 processes"),
        ("random", 7, 2, "one process"),
        ("pairs", 8, 3, "1, 2 or 4 processes"),
        ("pairs", 8, 8, "1, 2 or 4 processes"),
    ],
)
def test_a_resumed_run_keeps_its_batch_and_hears_how_many_processes_can_share_it(
    sampler, batch_size, processes, remedy
):
    with pytest.raises(UsageError) as error:
        check_shares(batch_size, SamplingConfig(sampler=sampler), processes, resumed=True)
    assert error.value.remedy == f"Resume with {remedy}."
    for count in map(int, re.findall(r"\d+", remedy)):
        check_shares(batch_size, SamplingConfig(sampler=sampler), count)
