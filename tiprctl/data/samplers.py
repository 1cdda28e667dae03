"""Which captions make a batch: pure functions of the seed and the epoch, so that any step can be taken up again."""

from __future__ import annotations

import numpy as np

from tiprctl.config import SamplingConfig
from tiprctl.errors import UsageError

Batches = list[np.ndarray]


def epoch_batches(
    lengths: np.ndarray, pids: np.ndarray, *, batch_size: int, config: SamplingConfig, seed: int, epoch: int
) -> Batches:
    """The batches of an epoch, each an index array `(batch_size,)` into the captions; what is left over is dropped.

    `lengths` are the captions' token counts, `pids` their identities, both `(captions,)`.

    Raises:
        UsageError: there are fewer captions than one batch needs.
    """
    if len(lengths) < batch_size:
        raise UsageError(
            f"The training split has {len(lengths)} captions, fewer than one batch of {batch_size}",
            where="--batch-size",
            remedy=f"Choose a batch size of at most {len(lengths)}.",
        )
    generator = np.random.default_rng((seed, epoch))
    if config.sampler == "identity":
        return _identity_batches(pids, batch_size, config.per_identity, generator)
    return _random_batches(lengths, batch_size, config.bucket, generator)


def _random_batches(lengths: np.ndarray, batch_size: int, bucket: int, generator: np.random.Generator) -> Batches:
    """Captions in random order; within `bucket` batches sorted by length, the batches shuffled again."""
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
            where="--batch-size",
            remedy=f"Choose a multiple of {per_identity}.",
        )
    order = generator.permutation(len(pids))
    members = [group for group in np.split(order[np.argsort(pids[order], kind="stable")], _starts(pids))]
    groups = [group for member in members for group in _groups_of(member, per_identity, generator)]
    shuffled = [groups[i] for i in generator.permutation(len(groups))]
    per_batch = batch_size // per_identity
    count = len(shuffled) // per_batch
    if count == 0:
        raise UsageError(
            f"The training split gives {len(groups)} groups of {per_identity} captions, fewer than a batch of {batch_size}",
            where="--batch-size",
            remedy=f"Choose a batch size of at most {len(groups) * per_identity}.",
        )
    return [np.concatenate(shuffled[i * per_batch : (i + 1) * per_batch]) for i in range(count)]


def _starts(pids: np.ndarray) -> np.ndarray:
    """Where, among the sorted ids, each identity but the first begins."""
    return np.flatnonzero(np.diff(np.sort(pids))) + 1


def _groups_of(members: np.ndarray, size: int, generator: np.random.Generator) -> Batches:
    if len(members) < size:
        return [np.concatenate([members, generator.choice(members, size - len(members))])]
    return list(members[: len(members) // size * size].reshape(-1, size))
