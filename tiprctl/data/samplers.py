"""Which captions make a batch: pure functions of the seed and the epoch, so that any step can be taken up again."""

from __future__ import annotations

import math

import numpy as np

from tiprctl.config import SamplingConfig
from tiprctl.errors import UsageError

Batches = list[np.ndarray]

BATCH_SIZE = "batch_size (--batch-size)"
"""What errors call it: the setting, and what `train` has for it."""


def epoch_batches(
    lengths: np.ndarray, pids: np.ndarray, *, batch_size: int, config: SamplingConfig, seed: int, epoch: int
) -> Batches:
    """The batches of an epoch, as index arrays into the captions; every epoch has as many.

    A batch holds `batch_size` captions, with `pairs` between half as many and as many. What is left over is dropped.
    `lengths` are the captions' token counts, `pids` their identities, both `(captions,)`.

    Raises:
        UsageError: a batch cannot be made of these captions; says which batch size can.
    """
    generator = np.random.default_rng((seed, epoch))
    match config.sampler:
        case "random":
            return _random_batches(lengths, batch_size, config.bucket, generator)
        case "identity":
            return _identity_batches(pids, batch_size, config.per_identity, generator)
        case "pairs":
            return _pair_batches(pids, batch_size, generator)


def check_shares(batch_size: int, config: SamplingConfig, processes: int, *, resumed: bool = False) -> None:
    """Check that every process gets a share of each batch, and all as much where batches are full.

    Raises:
        UsageError: they do not; says which batch sizes can be shared, or, where the run is `resumed` and keeps its
            own, among how many processes it can be.
    """
    least = 2 if config.sampler == "pairs" else 1

    def shared(size: int, count: int) -> bool:
        return size % count == 0 and size >= count * least

    if shared(batch_size, processes):
        return
    if resumed:
        *others, last = map(str, (count for count in range(1, 2 * processes) if shared(batch_size, count)))
        remedy = f"Resume with {', '.join(others)} or {last} processes." if others else "Resume with one process."
    else:
        step = math.lcm(processes, {"random": 1, "identity": config.per_identity, "pairs": 2}[config.sampler])
        below = batch_size // step * step
        nearest = [size for size in (below, below + step, below + 2 * step) if shared(size, processes)][:2]
        remedy = f"Choose {nearest[0]} or {nearest[1]}: it is the size of the whole batch."
    raise UsageError(
        f"A batch of {batch_size} cannot be shared among {processes} processes",
        where="--nproc-per-node" if resumed else "--batch-size",
        remedy=remedy,
    )


def check_parts(parts: int, rows: int) -> None:
    """Check that a process's `rows` of a batch can be taken in so many parts.

    Raises:
        UsageError: they cannot; says in how many they can.
    """
    if not 1 <= parts <= rows:
        raise UsageError(
            f"A process's {rows} rows of a batch cannot be taken in {parts} parts",
            where="--accumulate",
            remedy=f"Choose from 1 to {rows}.",
        )


def _random_batches(lengths: np.ndarray, batch_size: int, bucket: int, generator: np.random.Generator) -> Batches:
    """Captions in random order; within `bucket` batches sorted by length, the batches shuffled again."""
    if len(lengths) < batch_size:
        raise _too_large(f"{len(lengths)} captions, fewer than one batch of {batch_size}", len(lengths))
    count = len(lengths) // batch_size
    order = generator.permutation(len(lengths))[: count * batch_size]
    span = bucket * batch_size
    chunks = [order[start : start + span] for start in range(0, len(order), span)]
    ordered = np.concatenate([chunk[np.argsort(lengths[chunk], kind="stable")] for chunk in chunks])
    batches = ordered.reshape(count, batch_size)
    return list(batches[generator.permutation(count)])


def _identity_batches(pids: np.ndarray, batch_size: int, per_identity: int, generator: np.random.Generator) -> Batches:
    """Batches of P identities with K captions each; an identity's captions are used once an epoch, in groups of K.

    An identity with fewer captions than K repeats some of them.
    """
    if batch_size % per_identity:
        raise UsageError(
            f"A batch of {batch_size} cannot be divided into identities of {per_identity} captions",
            where=BATCH_SIZE,
            remedy=f"Choose a multiple of {per_identity}.",
        )
    groups = [
        group for member in _shuffled_members(pids, generator) for group in _groups_of(member, per_identity, generator)
    ]
    shuffled = [groups[i] for i in generator.permutation(len(groups))]
    per_batch = batch_size // per_identity
    count = len(shuffled) // per_batch
    if count == 0:
        what = f"{len(groups)} groups of {per_identity} captions, fewer than one batch of {batch_size}"
        raise _too_large(what, len(groups) * per_identity)
    return [np.concatenate(shuffled[i * per_batch : (i + 1) * per_batch]) for i in range(count)]


def _pair_batches(pids: np.ndarray, batch_size: int, generator: np.random.Generator) -> Batches:
    """Batches of B/2 identities with one or two captions each, none of them twice in an epoch (SEN's `idrannum`).

    Of the groups of an identity as many are of one caption as of two, as nearly as its captions allow, so that every
    epoch has as many steps. A batch draws its identities with odds in proportion to the groups they have left; an
    identity that has one left for every batch to come is taken, which is what lets all batches be filled.
    """
    if batch_size % 2:
        remedy = f"Choose {batch_size - 1} or {batch_size + 1}."
        raise UsageError(f"A batch of {batch_size} cannot be halved", where=BATCH_SIZE, remedy=remedy)
    identities = batch_size // 2
    groups = [_ones_and_twos(member, generator) for member in _shuffled_members(pids, generator)]
    if len(groups) < identities:
        raise _too_large(f"{len(groups)} identities, fewer than the {identities} of one batch", 2 * len(groups))
    left = np.array([len(group) for group in groups])
    count = _batches_of_distinct(left, identities)
    left = _without_surplus(np.minimum(left, count), count * identities, generator)
    batches = []
    for to_come in range(count, 0, -1):
        # The least of such keys are a draw without return, with odds in proportion to `left` (Efraimidis, Spirakis).
        with np.errstate(divide="ignore"):
            keys = np.where(left == to_come, 0.0, generator.exponential(size=len(left)) / left)
        chosen = np.argpartition(keys, identities - 1)[:identities]
        left[chosen] -= 1
        batches.append(np.concatenate([groups[identity].pop() for identity in chosen]))
    return batches


def _ones_and_twos(members: np.ndarray, generator: np.random.Generator) -> Batches:
    """An identity's captions in groups of one and two, in random order; of 3n captions 2n groups."""
    groups = (2 * len(members) + 1) // 3
    sizes = generator.permutation(np.repeat([2, 1], [len(members) - groups, 2 * groups - len(members)]))
    return np.split(members, np.cumsum(sizes)[:-1])


def _batches_of_distinct(left: np.ndarray, identities: int) -> int:
    """How many batches of so many distinct identities there can be where each identity has `left` groups."""
    count = int(left.sum()) // identities
    while np.minimum(left, count).sum() < count * identities:
        count -= 1
    return count


def _without_surplus(left: np.ndarray, total: int, generator: np.random.Generator) -> np.ndarray:
    """`left` without some of its groups, drawn at random, so that `total` remain."""
    owners = generator.permutation(np.repeat(np.arange(len(left)), left))
    return np.bincount(owners[:total], minlength=len(left))


def _shuffled_members(pids: np.ndarray, generator: np.random.Generator) -> Batches:
    """The captions of each identity in random order."""
    order = generator.permutation(len(pids))
    return np.split(order[np.argsort(pids[order], kind="stable")], _starts(pids))


def _starts(pids: np.ndarray) -> np.ndarray:
    """Where, among the sorted ids, each identity but the first begins."""
    return np.flatnonzero(np.diff(np.sort(pids))) + 1


def _groups_of(members: np.ndarray, size: int, generator: np.random.Generator) -> Batches:
    if len(members) < size:
        return [np.concatenate([members, generator.choice(members, size - len(members))])]
    return list(members[: len(members) // size * size].reshape(-1, size))


def _too_large(what: str, most: int) -> UsageError:
    return UsageError(
        f"The training split has {what}", where=BATCH_SIZE, remedy=f"Choose a batch size of at most {most}."
    )
