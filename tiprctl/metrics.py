"""How well queries rank a gallery: R@k, mAP and mINP, exact, without ordering the whole gallery for every query."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tiprctl.errors import InputError, UsageError
from tiprctl.losses.similarity import at_least_float32

CHUNK = 256


@dataclass(frozen=True)
class RetrievalMetrics:
    """Figures of one retrieval direction, in percent.

    Attributes:
        recall: k -> R@k, the share of all queries whose best-ranked hit is among the first k.
        mean_ap: mAP; a query's AP is the mean over its hits of (hits so far / rank).
        mean_inp: mINP; a query's INP is (number of hits / rank of the last hit).
        queries: number of queries.
        unmatched: queries without a hit anywhere in the gallery: a miss in every R@k, left out of mAP and mINP.
    """

    recall: dict[int, float]
    mean_ap: float
    mean_inp: float
    queries: int
    unmatched: int


def rank_metrics(
    similarity: Tensor,
    query_ids: Tensor | Sequence[int],
    gallery_ids: Tensor | Sequence[int],
    *,
    ks: Sequence[int] = (1, 5, 10),
    chunk: int = CHUNK,
) -> RetrievalMetrics:
    """R@k, mAP and mINP of a similarity matrix; equal similarities rank in the order of the gallery.

    Args:
        similarity: (Q, G), higher is more similar, of any floating type.
        query_ids: (Q,) identities; every gallery item of the same identity is a hit.
        gallery_ids: (G,) identities.
        ks: the k of R@k; one beyond the gallery asks whether there is a hit at all.
        chunk: queries ranked at a time.

    Raises:
        UsageError: the identities do not fit the matrix.
        InputError: no query has a hit, or a similarity is not a number.
    """
    return _measure(
        lambda rows: at_least_float32(similarity[rows]), similarity.shape, query_ids, gallery_ids, ks, chunk
    )


def retrieval_metrics(
    query_features: Tensor,
    gallery_features: Tensor,
    query_ids: Tensor | Sequence[int],
    gallery_ids: Tensor | Sequence[int],
    *,
    first: Tensor | None = None,
    ks: Sequence[int] = (1, 5, 10),
    chunk: int = CHUNK,
) -> RetrievalMetrics:
    """R@k, mAP and mINP of features, without ever holding the full similarity matrix.

    The similarity is the inner product of the features as they are given: normalise them for cosines. It is formed for
    `chunk` queries at a time, in float32 also for half-precision features and under autocast, so that the memory beyond
    the features grows with chunk x G alone (100 to 300 MB for 256 queries and 20,000 items).

    Args:
        query_features: (Q, D).
        gallery_features: (G, D).
        query_ids, gallery_ids, ks: as for `rank_metrics`, whose figures and errors it shares.
        first: (Q, K) gallery items that rank before all others of their query, in this order, whatever their
            similarity: a ranking whose best K were put in another order.
        chunk: queries ranked at a time.
    """
    shape = (len(query_features), len(gallery_features))
    similarities = _inner_products(query_features, gallery_features)
    if first is not None:
        similarities = _putting_first(first, similarities)
    return _measure(similarities, shape, query_ids, gallery_ids, ks, chunk)


@torch.no_grad()
def top_ranks(query_features: Tensor, gallery_features: Tensor, k: int, *, chunk: int = CHUNK) -> tuple[Tensor, Tensor]:
    """The first k gallery items of each query, ranked as by `retrieval_metrics`, in as little memory.

    Returns:
        indices (Q, k) int64 into the gallery and their similarities (Q, k), best first; on the CPU. Where k is beyond
        the gallery, all of it.

    Raises:
        InputError: a similarity is not a number.
    """
    similarities = _inner_products(query_features, gallery_features)
    queries = torch.arange(len(query_features))
    parts = [_top(similarities(rows), min(k, len(gallery_features))) for rows in queries.split(chunk)]
    indices, scores = zip(*parts)
    return torch.cat(indices), torch.cat(scores)


def _inner_products(query_features: Tensor, gallery_features: Tensor) -> Callable[[Tensor], Tensor]:
    """A function from the indices of some queries to their similarities with the gallery."""
    gallery = at_least_float32(gallery_features).T

    def similarities(rows: Tensor) -> Tensor:
        with torch.autocast(query_features.device.type, enabled=False):
            return at_least_float32(query_features[rows]) @ gallery

    return similarities


def _putting_first(first: Tensor, similarities: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`similarities` in which the items `first` (Q, K) of each query lie above all others, in falling order."""

    def raised(rows: Tensor) -> Tensor:
        scores = similarities(rows)
        places = torch.arange(first.shape[1] + 1, 1, -1, device=scores.device)
        # Multiples of the largest are apart in floating point however large it is; the others stay as they are.
        largest = scores.abs().amax(dim=1, keepdim=True).clamp(min=1)
        return scores.scatter(1, first[rows].to(scores.device), largest * places)

    return raised


@torch.no_grad()
def _measure(
    similarities: Callable[[Tensor], Tensor],
    shape: Sequence[int],
    query_ids: Tensor | Sequence[int],
    gallery_ids: Tensor | Sequence[int],
    ks: Sequence[int],
    chunk: int,
) -> RetrievalMetrics:
    """The figures of the queries, `similarities` giving the rows of their (Q, G) matrix on demand."""
    query_ids, gallery_ids = torch.as_tensor(query_ids).cpu(), torch.as_tensor(gallery_ids).cpu()
    if tuple(shape) != (len(query_ids), len(gallery_ids)):
        raise UsageError(
            f"{len(query_ids)} query and {len(gallery_ids)} gallery identities "
            f"for similarities of shape {tuple(shape)}",
            remedy="Give one identity for each query (row) and for each gallery item (column).",
        )
    matched = torch.isin(query_ids, gallery_ids).nonzero().flatten()
    if len(matched) == 0:
        raise InputError(
            f"None of the {len(query_ids)} queries has a hit among the {len(gallery_ids)} gallery items",
            remedy="Check that queries and gallery are of one split and carry the same identities.",
        )
    ranks_of_chunks = (
        _hit_ranks(similarities(rows), query_ids[rows, None] == gallery_ids) for rows in matched.split(chunk)
    )
    best, ap, inp = (torch.cat(parts) for parts in zip(*map(_figures, ranks_of_chunks)))
    return RetrievalMetrics(
        recall={k: 100 * (best <= k).sum().item() / len(query_ids) for k in ks},
        mean_ap=100 * ap.mean().item(),
        mean_inp=100 * inp.mean().item(),
        queries=len(query_ids),
        unmatched=len(query_ids) - len(matched),
    )


def _figures(ranks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Best rank, AP and INP (fractions) of each query, from the (C, H) ranks of its hits."""
    counts = ranks.isfinite().sum(dim=1)
    hits_so_far = torch.arange(1, ranks.shape[1] + 1)
    last = ranks.gather(1, counts[:, None] - 1).flatten()
    return ranks[:, 0], (hits_so_far / ranks).sum(dim=1) / counts, counts / last


def _hit_ranks(scores: Tensor, matches: Tensor) -> Tensor:
    """Ranks of each query's hits: (C, H) float64 on the CPU, ascending from 1; rows with fewer hits end in inf.

    A hit's rank is one more than the number of items that score higher: the sorted scores tell it without the items'
    order. Only queries with a hit that ties with another item need that order.

    Args:
        scores: (C, G).
        matches: (C, G) bool, True = hit; at least one a row.
    """
    columns, is_hit = _true_columns(matches.to(scores.device))
    ascending = _sorted_rows(scores)
    hits = scores.gather(1, columns)
    not_above = torch.searchsorted(ascending, hits, right=True)
    ranks = scores.shape[1] - not_above + 1

    tied = (not_above - torch.searchsorted(ascending, hits) > 1).any(dim=1).nonzero().flatten()
    if len(tied) > 0:
        # The inverse of the order: which place each item takes.
        ranks[tied] = _order(scores[tied]).argsort(dim=1).gather(1, columns[tied]) + 1
    return ranks.cpu().double().masked_fill(~is_hit.cpu(), float("inf")).sort(dim=1).values


def _true_columns(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of the True entries of each row, moved to the left: (C, H) indices and (C, H) bool, False = padding."""
    rows, columns = mask.nonzero(as_tuple=True)
    counts = rows.bincount(minlength=len(mask))  # several times as fast as the sum of a boolean matrix
    is_entry = torch.arange(int(counts.max()), device=mask.device) < counts[:, None]
    moved = torch.zeros_like(is_entry, dtype=torch.int64)
    moved[is_entry] = columns
    return moved, is_entry


def _sorted_rows(scores: Tensor) -> Tensor:
    """The scores of each row, ascending.

    Raises:
        InputError: one is not a number; it would otherwise rank first unseen.
    """
    if scores.device.type == "cpu":
        ascending = scores.clone()
        # NumPy sorts bare values with vector instructions: 25 times as fast as torch.sort on one core.
        ascending.numpy().sort(axis=1)
    else:
        ascending = scores.sort(dim=1).values
    _refuse_nan(ascending[:, -1])
    return ascending


def _order(scores: Tensor) -> Tensor:
    """Gallery indices from the highest score to the lowest, equal scores in gallery order."""
    return scores.argsort(dim=1, descending=True, stable=True)


def _top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first k indices and scores of each row."""
    # One more than asked for shows a tie across the border.
    values, indices = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    _refuse_nan(values[:, :1])
    tied = (values[:, 1:] == values[:, :-1]).any(dim=1).nonzero().flatten()
    indices[tied] = _order(scores[tied])[:, : indices.shape[1]]
    return indices[:, :k].cpu(), values[:, :k].cpu()


def _refuse_nan(highest: Tensor) -> None:
    """Raise when one of the rows' highest scores is not a number (sorting puts NaN above all others)."""
    if highest.isnan().any():
        raise InputError(
            "Some similarities are not numbers (NaN)",
            remedy="The features are damaged: check the checkpoint that made them, or evaluate in float32.",
        )
