"""The ranking figures against the published code's, against loops, by hand, and at their edges."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tiprctl.errors import InputError, UsageError
from tiprctl.metrics import RetrievalMetrics, rank_metrics, retrieval_metrics, top_ranks


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    with np.load(Path(__file__).parent / "reference" / "rank.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def order_oracle(scores: list[float]) -> list[int]:
    """Gallery indices, best first; Python's sort keeps the gallery order of equal scores."""
    return sorted(range(len(scores)), key=lambda item: -scores[item])


def metrics_oracle(
    similarity: list[list[float]], query_ids: list[int], gallery_ids: list[int], ks: tuple[int, ...]
) -> RetrievalMetrics:
    found, precisions, penalties = dict.fromkeys(ks, 0), [], []
    for row, query_id in zip(similarity, query_ids):
        ranks = [rank for rank, item in enumerate(order_oracle(row), start=1) if gallery_ids[item] == query_id]
        for k in ks:
            found[k] += any(rank <= k for rank in ranks)
        if ranks:
            precisions.append(sum(hits / rank for hits, rank in enumerate(ranks, start=1)) / len(ranks))
            penalties.append(len(ranks) / ranks[-1])
    return RetrievalMetrics(
        recall={k: 100 * count / len(query_ids) for k, count in found.items()},
        mean_ap=100 * sum(precisions) / len(precisions),
        mean_inp=100 * sum(penalties) / len(penalties),
        queries=len(query_ids),
        unmatched=len(query_ids) - len(precisions),
    )


def assert_same(found: RetrievalMetrics, expected: RetrievalMetrics) -> None:
    assert found.recall == pytest.approx(expected.recall)
    assert found.mean_ap == pytest.approx(expected.mean_ap, rel=1e-9)
    assert found.mean_inp == pytest.approx(expected.mean_inp, rel=1e-9)
    assert (found.queries, found.unmatched) == (expected.queries, expected.unmatched)


def random_case(seed: int, *, queries: int = 23, gallery: int = 41, ids: int = 6, levels: int = 5) -> tuple:
    """Small-integer features, whose inner products are exact and tie often; some queries may have no match."""
    generator = torch.Generator().manual_seed(seed)

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=generator)

    return (
        integers(levels, queries, 3).float() - levels // 2,
        integers(levels, gallery, 3).float() - levels // 2,
        integers(ids + 1, queries),
        integers(ids, gallery),
    )


@pytest.mark.parametrize("direction", ["text to image", "image to text"])
def test_equals_the_published_code(reference: dict[str, Tensor], direction: str) -> None:
    similarity, query_ids, gallery_ids, prefix = reference["similarity"], reference["q_pids"], reference["g_pids"], ""
    if direction == "image to text":
        similarity, query_ids, gallery_ids, prefix = similarity.T, gallery_ids, query_ids, "i2t_"

    found = rank_metrics(similarity, query_ids, gallery_ids, ks=range(1, 11))

    assert list(found.recall.values()) == pytest.approx(reference[f"{prefix}cmc"].tolist(), abs=1e-4)
    assert found.mean_ap == pytest.approx(reference[f"{prefix}mAP"].item(), abs=1e-4)
    assert found.mean_inp == pytest.approx(reference[f"{prefix}mINP"].item(), abs=1e-4)


def test_top_ranks_equal_the_published_code(reference: dict[str, Tensor]) -> None:
    """Unit vectors as the gallery make the features' products the similarities themselves."""
    indices, scores = top_ranks(reference["similarity"], torch.eye(90), 10)

    assert torch.equal(indices, reference["topk_indices"].long())
    assert torch.equal(scores, reference["similarity"].gather(1, indices))


@pytest.mark.parametrize("levels", [2, 5, 1001])
@pytest.mark.parametrize("seed", range(8))
def test_equals_the_loop(seed: int, levels: int) -> None:
    """From nearly all scores tied (2 levels) to next to none."""
    queries, gallery, query_ids, gallery_ids = random_case(seed, levels=levels)
    ks = (1, 2, 5, 40, 41, 500)
    similarity = queries @ gallery.T
    expected = metrics_oracle(similarity.tolist(), query_ids.tolist(), gallery_ids.tolist(), ks)

    assert_same(rank_metrics(similarity, query_ids, gallery_ids, ks=ks), expected)
    assert_same(retrieval_metrics(queries, gallery, query_ids, gallery_ids, ks=ks), expected)


@pytest.mark.parametrize("k", [1, 7, 40, 41, 60])
@pytest.mark.parametrize("levels", [2, 5, 1001])
def test_top_ranks_equal_the_loop(k: int, levels: int) -> None:
    queries, gallery, _, _ = random_case(3, levels=levels)
    similarity = queries @ gallery.T

    indices, scores = top_ranks(queries, gallery, k, chunk=5)

    assert indices.tolist() == [order_oracle(row)[:k] for row in similarity.tolist()]
    assert torch.equal(scores, similarity.gather(1, indices))


@pytest.mark.parametrize("chunk", [1, 2, 22, 23, 24])
def test_chunks_do_not_matter(chunk: int) -> None:
    queries, gallery, query_ids, gallery_ids = random_case(1)
    expected = retrieval_metrics(queries, gallery, query_ids, gallery_ids, chunk=10_000)

    assert retrieval_metrics(queries, gallery, query_ids, gallery_ids, chunk=chunk) == expected
    assert rank_metrics(queries @ gallery.T, query_ids, gallery_ids, chunk=chunk) == expected


def test_values_by_hand() -> None:
    """Hits at ranks 1 and 4 of five, and a single hit at rank 3."""
    similarity = torch.tensor([[0.9, 0.1, 0.5, 0.4, 0.3], [0.2, 0.8, 0.1, 0.9, 0.3]])
    found = rank_metrics(similarity, [1, 2], [1, 3, 3, 3, 1], ks=(1,))
    assert (found.recall, found.unmatched) == ({1: 50.0}, 1)
    assert found.mean_ap == pytest.approx(100 * (1 / 1 + 2 / 4) / 2)
    assert found.mean_inp == pytest.approx(100 * 2 / 4)

    found = rank_metrics(similarity, [1, 2], [1, 3, 3, 3, 2], ks=(1, 2, 3))
    assert found.recall == {1: 50.0, 2: 50.0, 3: 100.0}
    assert found.mean_ap == pytest.approx(100 * (1 + 1 / 3) / 2)


def test_ties_rank_in_gallery_order() -> None:
    similarity = torch.tensor([[0.5, 0.7, 0.5, 0.5]])
    for position, rank in enumerate([2, 1, 3, 4]):
        gallery_ids = [1 if item == position else 0 for item in range(4)]
        assert rank_metrics(similarity, [1], gallery_ids).mean_inp == pytest.approx(100 / rank)


def test_a_query_without_match_is_a_miss_but_left_out_of_the_means() -> None:
    similarity = torch.tensor([[0.9, 0.1], [0.9, 0.1]])
    found = rank_metrics(similarity, [1, 7], [1, 2], ks=(1, 100))

    assert found == RetrievalMetrics(recall={1: 50.0, 100: 50.0}, mean_ap=100.0, mean_inp=100.0, queries=2, unmatched=1)


def test_everything_matches_and_a_gallery_of_one() -> None:
    for gallery in (1, 5):
        found = rank_metrics(torch.rand(3, gallery), [4, 4, 4], [4] * gallery)
        assert found == RetrievalMetrics(
            recall={1: 100.0, 5: 100.0, 10: 100.0}, mean_ap=100.0, mean_inp=100.0, queries=3, unmatched=0
        )


def test_infinite_similarities_rank_at_the_ends() -> None:
    similarity = torch.tensor([[float("-inf"), 0.0, float("inf")]])
    assert rank_metrics(similarity, [1], [1, 0, 0]).mean_ap == pytest.approx(100 / 3)
    assert rank_metrics(similarity, [1], [0, 0, 1]).mean_ap == 100


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_floating_types_rank_as_their_exact_products(dtype: torch.dtype) -> None:
    """Products of half-precision features are not rounded to half precision, which would tie most of them."""
    generator = torch.Generator().manual_seed(5)
    queries, gallery = (torch.randn(count, 32, generator=generator).to(dtype) for count in (20, 300))
    query_ids, gallery_ids = (torch.randint(0, 30, (count,), generator=generator) for count in (20, 300))
    similarity = queries.double() @ gallery.double().T
    expected = metrics_oracle(similarity.tolist(), query_ids.tolist(), gallery_ids.tolist(), (1, 5, 10))

    assert_same(retrieval_metrics(queries, gallery, query_ids, gallery_ids), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(retrieval_metrics(queries, gallery, query_ids, gallery_ids), expected)


def test_inputs_stay_as_they_are_and_may_carry_gradients() -> None:
    queries, gallery, query_ids, gallery_ids = random_case(2)
    inputs = (queries.requires_grad_(), gallery, query_ids, gallery_ids)
    before = [value.detach().clone() for value in inputs]
    similarity = queries @ gallery.T
    similarity_before = similarity.detach().clone()

    retrieval_metrics(*inputs)
    rank_metrics(similarity, query_ids, gallery_ids)
    top_ranks(queries, gallery, 5)

    assert torch.equal(similarity.detach(), similarity_before)
    assert all(torch.equal(value.detach(), old) for value, old in zip(inputs, before))


def test_identities_may_be_numpy_arrays() -> None:
    queries, gallery, query_ids, gallery_ids = random_case(2)
    assert retrieval_metrics(queries, gallery, query_ids.numpy(), gallery_ids.numpy()) == retrieval_metrics(
        queries, gallery, query_ids, gallery_ids
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_ranks_as_the_cpu_does() -> None:
    queries, gallery, query_ids, gallery_ids = random_case(2)
    similarity = queries @ gallery.T

    assert_same(
        rank_metrics(similarity.cuda(), query_ids.cuda(), gallery_ids), rank_metrics(similarity, query_ids, gallery_ids)
    )
    for found, expected in zip(top_ranks(queries.cuda(), gallery.cuda(), 7), top_ranks(queries, gallery, 7)):
        assert torch.equal(found, expected)


def test_no_hit_at_all_is_an_error() -> None:
    with pytest.raises(InputError, match="None of the 2 queries has a hit among the 3 gallery items") as error:
        rank_metrics(torch.rand(2, 3), [1, 2], [3, 4, 5])
    assert "one split" in error.value.remedy
    with pytest.raises(InputError, match="None of the 0 queries"):
        rank_metrics(torch.rand(0, 3), [], [3, 4, 5])
    with pytest.raises(InputError, match="0 gallery items"):
        rank_metrics(torch.rand(2, 0), [1, 2], [])


@pytest.mark.parametrize(("query_ids", "gallery_ids"), [([1], [1, 2, 3]), ([1, 2], [1])])
def test_identities_that_do_not_fit_are_refused(query_ids: list[int], gallery_ids: list[int]) -> None:
    """One identity alone would otherwise be taken for all."""
    with pytest.raises(UsageError, match=r"similarities of shape \(2, 3\)"):
        rank_metrics(torch.rand(2, 3), query_ids, gallery_ids)


def test_nan_is_refused() -> None:
    """In a hit or elsewhere, NaN would compare below everything and flatter the figures."""
    queries, gallery, query_ids, gallery_ids = random_case(2)
    for item in range(2):
        damaged = gallery.clone()
        damaged[item] = float("nan")
        with pytest.raises(InputError, match="not numbers") as error:
            retrieval_metrics(queries, damaged, query_ids, gallery_ids)
        assert "checkpoint" in error.value.remedy
        with pytest.raises(InputError, match="not numbers"):
            top_ranks(queries, damaged, 5)


def test_top_ranks_of_nothing() -> None:
    indices, scores = top_ranks(torch.rand(0, 4), torch.rand(3, 4), 2)
    assert indices.shape == scores.shape == (0, 2)
    indices, scores = top_ranks(torch.rand(2, 4), torch.rand(0, 4), 2)
    assert indices.shape == scores.shape == (2, 0)


def test_what_is_put_first_ranks_before_all_others_in_its_order() -> None:
    queries, gallery, query_ids, gallery_ids = random_case(seed=5)
    generator = torch.Generator().manual_seed(5)
    first = torch.stack([torch.randperm(len(gallery), generator=generator)[:7] for _ in queries])
    # Far from unit length: the places must stay apart beside large products.
    queries = queries * 1e6

    similarity = (queries @ gallery.T).tolist()
    for row, items in zip(similarity, first.tolist()):
        for place, item in enumerate(items):
            row[item] = math.inf if place == 0 else 1e12 - place
    expected = metrics_oracle(similarity, query_ids.tolist(), gallery_ids.tolist(), (1, 3, 7, 10))

    found = retrieval_metrics(queries, gallery, query_ids, gallery_ids, first=first, ks=(1, 3, 7, 10), chunk=4)
    assert_same(found, expected)
    plain = retrieval_metrics(queries, gallery, query_ids, gallery_ids, ks=(1, 3, 7, 10))
    assert found.recall != plain.recall


def test_another_order_of_the_first_leaves_the_recall_beyond_them() -> None:
    queries, gallery, query_ids, gallery_ids = random_case(seed=6)
    best, _ = top_ranks(queries, gallery, 7)
    plain, turned = (
        retrieval_metrics(queries, gallery, query_ids, gallery_ids, first=first, ks=(1, 7, 10))
        for first in (None, best.flip(1))
    )
    assert (plain.recall[7], plain.recall[10]) == (turned.recall[7], turned.recall[10])
    assert plain.recall[1] != turned.recall[1]
    same = retrieval_metrics(queries, gallery, query_ids, gallery_ids, first=best, ks=(1, 7, 10))
    assert_same(same, plain)
