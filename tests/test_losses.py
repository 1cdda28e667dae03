"""The losses against the published code's values and gradients, and against loops that follow the formulae."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tiprctl.losses import (
    cmpc_loss,
    cmpm_loss,
    cosine_similarity,
    diversity_loss,
    identity_loss,
    itc_loss,
    mlm_loss,
    ranking_loss,
    restoration_loss,
    sdm_loss,
    triplet_loss,
)
from tiprctl.models.masking import patchify, standardise

SCALE = 50.0
# The losses of a similarity matrix, all with the signature (similarity, pids).
MATRIX_LOSSES = {
    "sdm": partial(sdm_loss, logit_scale=SCALE),
    "itc": lambda similarity, pids: itc_loss(similarity, logit_scale=SCALE),
    "triplet": triplet_loss,
    "ranking": ranking_loss,
}
BATCHES = {
    "repeated": [3, 5, 3, 8, 5, 5, 1, 0],
    "one identity": [7] * 6,
    "all distinct": list(range(9)),
    "one pair": [4],
}


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    with np.load(Path(__file__).parent / "reference" / "losses.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(params=MATRIX_LOSSES, name="name")
def loss_name(request: pytest.FixtureRequest) -> str:
    return request.param


def features(
    count: int, *, seed: int = 0, width: int = 16, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Image features and, correlated with them, text features, (count, width); neither normalised."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(count, width, generator=generator)
    text = image + 3 * torch.randn(count, width, generator=generator)
    return image.to(dtype), text.to(dtype)


def similarities(count: int, *, seed: int = 0) -> Tensor:
    return cosine_similarity(*features(count, seed=seed))


# The oracles follow the formulae in plain loops, in double precision.


def cosine_oracle(image: list[list[float]], text: list[list[float]]) -> list[list[float]]:
    def cosine(x: list[float], y: list[float]) -> float:
        return sum(a * b for a, b in zip(x, y)) / math.hypot(*x) / math.hypot(*y)

    return [[cosine(x, y) for y in text] for x in image]


def transposed(matrix: list[list[float]]) -> list[list[float]]:
    return [list(column) for column in zip(*matrix)]


def softmax_oracle(row: list[float]) -> list[float]:
    powers = [math.exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


def cross_entropy_oracle(logits: list[list[float]], labels: list[int]) -> float:
    return -sum(math.log(softmax_oracle(row)[label]) for row, label in zip(logits, labels)) / len(labels)


def sdm_oracle(similarity: list[list[float]], pids: list[int]) -> float:
    total = 0.0
    for matrix in (similarity, transposed(similarity)):
        for row, pid in zip(matrix, pids):
            for p, other in zip(softmax_oracle([SCALE * value for value in row]), pids):
                q = 1 / pids.count(pid) if other == pid else 0.0
                if p > 0:
                    total += p * (math.log(p) - math.log(q + 1e-8))
    return total / len(pids)


def itc_oracle(similarity: list[list[float]], pids: list[int]) -> float:
    logits = [[SCALE * value for value in row] for row in similarity]
    diagonal = list(range(len(pids)))
    return (cross_entropy_oracle(logits, diagonal) + cross_entropy_oracle(transposed(logits), diagonal)) / 2


def triplet_oracle(similarity: list[list[float]], pids: list[int], margin: float = 0.05) -> float:
    total = 0.0
    for matrix in (similarity, transposed(similarity)):
        for anchor, row in enumerate(matrix):
            negatives = [value for value, pid in zip(row, pids) if pid != pids[anchor]]
            if negatives:
                total += max(0.0, (1 - row[anchor]) - (1 - max(negatives)) + margin)
    return total / len(pids)


def ranking_oracle(similarity: list[list[float]], pids: list[int], margin: float = 0.2) -> float:
    total = 0.0
    for matrix in (similarity, transposed(similarity)):
        for anchor, row in enumerate(matrix):
            negatives = [value for value, pid in zip(row, pids) if pid != pids[anchor]]
            if negatives and max(negatives) > row[anchor]:
                total += max(negatives) - row[anchor] + margin
    return total


def projection_oracle(rows: list[list[float]], others: list[list[float]]) -> list[list[float]]:
    return [[sum(a * b for a, b in zip(x, y)) / math.hypot(*y) for y in others] for x in rows]


def cmpm_oracle(image: list[list[float]], text: list[list[float]], pids: list[int]) -> float:
    total = 0.0
    for projections in (projection_oracle(image, text), projection_oracle(text, image)):
        for row, pid in zip(projections, pids):
            for p, other in zip(softmax_oracle(row), pids):
                q = 1 / math.sqrt(pids.count(pid)) if other == pid else 0.0
                if p > 0:
                    total += p * (math.log(p) - math.log(q + 1e-8))
    return total / len(pids)


def cmpc_oracle(image: list[list[float]], text: list[list[float]], pids: list[int], weight: list[list[float]]) -> float:
    classes = transposed(weight)
    total = 0.0
    for rows, partners in ((image, text), (text, image)):
        logits = []
        for index, partner in enumerate(partners):
            along = projection_oracle([rows[index]], [partner])[0][0]
            projected = [along * value / math.hypot(*partner) for value in partner]
            logits.append(projection_oracle([projected], classes)[0])
        total += cross_entropy_oracle(logits, pids)
    return total


ORACLES = {"sdm": sdm_oracle, "itc": itc_oracle, "triplet": triplet_oracle, "ranking": ranking_oracle}


@pytest.mark.parametrize(("name", "key"), [("sdm", "sdm"), ("itc", "itc"), ("triplet", "tri")])
def test_value_and_gradients_equal_the_published_code(reference: dict[str, Tensor], name: str, key: str) -> None:
    assert reference["logit_scale"].item() == SCALE
    image = reference["image_feats"].clone().requires_grad_()
    text = reference["text_feats"].clone().requires_grad_()

    loss = MATRIX_LOSSES[name](cosine_similarity(image, text), reference["pids"])
    loss.backward()

    torch.testing.assert_close(loss.detach(), reference[key], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(image.grad, reference[f"{key}_grad_image"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(text.grad, reference[f"{key}_grad_text"], rtol=1e-4, atol=1e-6)


def test_identity_value_and_gradients_equal_the_published_code(reference: dict[str, Tensor]) -> None:
    image = reference["id_image_logits"].clone().requires_grad_()
    text = reference["id_text_logits"].clone().requires_grad_()

    loss = identity_loss(image, text, reference["pids"])
    loss.backward()

    torch.testing.assert_close(loss.detach(), reference["id"])
    torch.testing.assert_close(image.grad, reference["id_grad_image_logits"])
    torch.testing.assert_close(text.grad, reference["id_grad_text_logits"])


def test_triplet_of_one_identity_is_zero_where_the_published_code_is_not(reference: dict[str, Tensor]) -> None:
    similarity = cosine_similarity(reference["image_feats"], reference["text_feats"]).requires_grad_()
    loss = triplet_loss(similarity, torch.zeros(8, dtype=torch.int64))
    loss.backward()

    assert reference["tri_all_same_pid"] > 0.01
    assert loss == 0
    assert torch.equal(similarity.grad, torch.zeros(8, 8))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_loop(name: str, batch: str, seed: int) -> None:
    pids = BATCHES[batch]
    image, text = features(len(pids), seed=seed)
    expected = ORACLES[name](cosine_oracle(image.tolist(), text.tolist()), pids)

    loss = MATRIX_LOSSES[name](cosine_similarity(image, text), torch.tensor(pids))

    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(("dtype", "rel"), [(torch.float32, 1e-4), (torch.float64, 1e-9), (torch.bfloat16, 1e-4)])
def test_equals_the_loop_for_each_input_type(name: str, dtype: torch.dtype, rel: float) -> None:
    """Half-precision features are exact in float32, so the loss is as exact as there."""
    pids = BATCHES["repeated"]
    image, text = features(len(pids), dtype=dtype)
    expected = ORACLES[name](cosine_oracle(image.tolist(), text.tolist()), pids)

    loss = MATRIX_LOSSES[name](cosine_similarity(image, text), torch.tensor(pids))

    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.item() == pytest.approx(expected, rel=rel)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_similarities_and_logits_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    similarity, pids = similarities(8).to(dtype), torch.tensor(BATCHES["repeated"])
    logits, labels = torch.randn(8, 10, generator=torch.Generator().manual_seed(0)).to(dtype), torch.arange(8)

    assert torch.equal(MATRIX_LOSSES[name](similarity, pids), MATRIX_LOSSES[name](similarity.float(), pids))
    assert torch.equal(identity_loss(logits, logits, labels), identity_loss(logits.float(), logits.float(), labels))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_identity_equals_the_loop(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    image, text = (torch.randn(5, 7, generator=generator).to(dtype) for _ in range(2))
    labels = [0, 6, 2, 2, 5]
    expected = (cross_entropy_oracle(image.tolist(), labels) + cross_entropy_oracle(text.tolist(), labels)) / 2

    assert identity_loss(image, text, torch.tensor(labels)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch", BATCHES)
def test_gradients_equal_finite_differences(name: str, batch: str) -> None:
    pids = torch.tensor(BATCHES[batch])
    image, text = (side.requires_grad_() for side in features(len(pids), seed=2, width=4, dtype=torch.float64))

    assert torch.autograd.gradcheck(
        lambda image, text: MATRIX_LOSSES[name](cosine_similarity(image, text), pids), (image, text)
    )


def test_similarity_of_plain_vectors() -> None:
    image = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    text = torch.tensor([[0.6, 0.8], [-5.0, 0.0]])

    torch.testing.assert_close(cosine_similarity(image, text), torch.tensor([[0.6, -1.0], [0.0, 0.0]]))


def test_sdm_of_equal_similarities() -> None:
    """With p = 1/2 everywhere: two distinct pairs give log(1/2) less the mean of log(1) and log(1e-8), twice over."""
    loss = sdm_loss(torch.full((2, 2), 0.3), torch.tensor([0, 1]), logit_scale=SCALE)
    assert loss.item() == pytest.approx(2 * (math.log(0.5) - 0.5 * math.log(1e-8)), rel=1e-6)

    one_identity = sdm_loss(torch.full((2, 2), 0.3), torch.tensor([9, 9]), logit_scale=SCALE)
    assert one_identity.item() == pytest.approx(0, abs=1e-6)


def test_itc_of_equal_similarities() -> None:
    assert itc_loss(torch.zeros(4, 4), logit_scale=SCALE).item() == pytest.approx(math.log(4))


def test_triplet_of_a_small_batch() -> None:
    similarity = torch.tensor([[0.50, 0.48, 0.90], [0.40, 0.60, 0.10], [0.20, 0.57, 0.30]])
    loss = triplet_loss(similarity, torch.tensor([1, 2, 1]))
    # Texts: 0 against image 1: -.05, 1 against images 0 and 2: .02, 2 against image 1: -.15.
    # Images: 0 against text 1: .03, 1 against texts 0 and 2: -.15, 2 against text 1: .32.
    assert loss.item() == pytest.approx((0 + 0.02 + 0) / 3 + (0.03 + 0 + 0.32) / 3, rel=1e-5)

    wider = triplet_loss(similarity, torch.tensor([1, 2, 1]), margin=0.15)
    assert wider.item() == pytest.approx((0.05 + 0.12 + 0) / 3 + (0.13 + 0 + 0.42) / 3, rel=1e-5)


def test_negatives_that_tie_share_the_gradient() -> None:
    similarity = torch.tensor([[0.5, 0.5, 0.5], [-1.0, 0.9, -1.0], [-1.0, -1.0, 0.9]], requires_grad=True)
    loss = triplet_loss(similarity, torch.arange(3))
    loss.backward()

    assert loss.item() == pytest.approx(0.05 / 3)
    torch.testing.assert_close(similarity.grad[0], torch.tensor([-1 / 3, 1 / 6, 1 / 6]))


def test_identity_of_equal_logits() -> None:
    assert identity_loss(torch.zeros(2, 6), torch.ones(2, 6), torch.tensor([0, 5])).item() == pytest.approx(math.log(6))


def test_identity_refuses_labels_out_of_range_and_leaves_minus_100_out() -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(IndexError):
        identity_loss(logits, logits, torch.tensor([0, 1, 4]))

    left_out = identity_loss(logits, logits, torch.tensor([0, -100, 3]))
    assert torch.equal(left_out, identity_loss(logits[[0, 2]], logits[[0, 2]], torch.tensor([0, 3])))


def test_order_of_the_batch_does_not_matter(name: str) -> None:
    pids = torch.tensor(BATCHES["repeated"])
    similarity = similarities(len(pids))
    order = torch.randperm(len(pids), generator=torch.Generator().manual_seed(1))

    shuffled = MATRIX_LOSSES[name](similarity[order][:, order], pids[order])

    torch.testing.assert_close(shuffled, MATRIX_LOSSES[name](similarity, pids), rtol=1e-5, atol=1e-6)


def test_images_and_texts_play_the_same_part(name: str) -> None:
    pids = torch.tensor(BATCHES["repeated"])
    similarity = similarities(len(pids))

    torch.testing.assert_close(MATRIX_LOSSES[name](similarity.T, pids), MATRIX_LOSSES[name](similarity, pids))


def test_length_of_the_features_does_not_matter(name: str) -> None:
    pids = torch.tensor(BATCHES["repeated"])
    image, text = features(len(pids))

    longer = MATRIX_LOSSES[name](cosine_similarity(7 * image, 0.1 * text), pids)

    torch.testing.assert_close(longer, MATRIX_LOSSES[name](cosine_similarity(image, text), pids), rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_input_and_inputs_stay(name: str) -> None:
    pids = torch.tensor(BATCHES["repeated"])
    image, text = (side.requires_grad_() for side in features(len(pids), seed=6))
    before = [value.detach().clone() for value in (image, text, pids)]

    # A wide margin keeps every hinge of the triplet open, pairs that all negatives beat those of the ranking.
    opened = {
        "triplet": partial(triplet_loss, margin=2.0),
        "ranking": lambda similarity, pids: ranking_loss(similarity - 2 * torch.eye(len(pids)), pids),
    }
    loss = opened.get(name, MATRIX_LOSSES[name])
    loss(cosine_similarity(image, text), pids).backward()

    assert all(torch.equal(value.detach(), old) for value, old in zip((image, text, pids), before))
    assert (image.grad.norm(dim=1) > 0).all() and (text.grad.norm(dim=1) > 0).all()


@pytest.mark.parametrize("loss", [itc_loss, partial(sdm_loss, pids=torch.arange(6))])
def test_a_learnable_temperature_receives_its_gradient(loss: partial[Tensor]) -> None:
    similarity = similarities(6).double()
    scale = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
    loss(similarity, logit_scale=scale).backward()

    step = 1e-5
    slope = (loss(similarity, logit_scale=10 + step) - loss(similarity, logit_scale=10 - step)) / (2 * step)
    torch.testing.assert_close(scale.grad, slope)
    assert scale.grad != 0


def test_autocast_changes_nothing(name: str) -> None:
    pids = torch.tensor(BATCHES["repeated"])
    image, text = features(len(pids))
    expected = MATRIX_LOSSES[name](cosine_similarity(image, text), pids)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (image @ text.T).dtype == torch.bfloat16
        assert torch.equal(MATRIX_LOSSES[name](cosine_similarity(image, text), pids), expected)


def test_extreme_similarities_stay_finite(name: str) -> None:
    similarity = (2 * torch.eye(4) - 1).requires_grad_()
    loss = MATRIX_LOSSES[name](-similarity, torch.arange(4))
    loss.backward()

    assert loss.isfinite() and similarity.grad.isfinite().all()


@pytest.mark.parametrize(("key", "target_of"), [("mae", lambda patches: patches), ("mae_normpix", standardise)])
def test_restoration_value_and_gradients_equal_the_published_code(
    reference: dict[str, Tensor], key: str, target_of: Callable[[Tensor], Tensor]
) -> None:
    prediction = reference["mae_pred"].clone().requires_grad_()
    target = target_of(patchify(reference["mae_imgs"], 16))

    loss = restoration_loss(prediction, target, reference["mae_mask"].bool())
    loss.backward()

    torch.testing.assert_close(loss.detach(), reference[key], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(prediction.grad.sum(2), reference[f"{key}_grad_pred_rowsum"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(prediction.grad[0, :, :8], reference[f"{key}_grad_pred_first"], rtol=1e-4, atol=1e-6)


def restoration_case(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Three images of four patches; one has a single hidden patch, another none."""
    generator = torch.Generator().manual_seed(3)
    prediction, target = (torch.randn(3, 4, 5, generator=generator).to(dtype) for _ in range(2))
    hidden = torch.tensor([[True, False, True, True], [False, True, False, False], [False] * 4])
    return prediction, target, hidden


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_restoration_equals_the_loop(dtype: torch.dtype) -> None:
    prediction, target, hidden = restoration_case(dtype)
    errors = []
    for image in range(3):
        for patch in range(4):
            if hidden[image, patch]:
                pairs = zip(prediction[image, patch].tolist(), target[image, patch].tolist())
                errors.append(sum((a - b) ** 2 for a, b in pairs) / 5)
    assert len(errors) == 4

    loss = restoration_loss(prediction, target, hidden)

    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.item() == pytest.approx(sum(errors) / 4, rel=1e-5)


def test_restoration_asks_nothing_of_visible_patches() -> None:
    prediction, target, hidden = restoration_case()
    prediction.requires_grad_()
    restoration_loss(prediction, target, hidden).backward()

    assert torch.equal(prediction.grad.abs().sum(2) > 0, hidden)


def test_restoration_of_nothing_is_zero() -> None:
    prediction, target, _ = restoration_case()
    loss = restoration_loss(prediction.requires_grad_(), target, torch.zeros(3, 4, dtype=torch.bool))
    loss.backward()

    assert loss == 0
    assert prediction.grad.abs().sum() == 0


def test_mlm_value_and_gradients_equal_the_published_code(reference: dict[str, Tensor]) -> None:
    logits = reference["mlm_scores"].clone().requires_grad_()
    loss = mlm_loss(logits, reference["mlm_labels"])
    loss.backward()

    torch.testing.assert_close(loss.detach(), reference["mlm"])
    torch.testing.assert_close(logits.grad, reference["mlm_grad"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_mlm_equals_the_loop_over_the_masked_words(dtype: torch.dtype) -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(4)).to(dtype)
    labels = [0, 6, 2, 0, 5]
    masked = [index for index, label in enumerate(labels) if label]
    expected = cross_entropy_oracle(logits[masked].tolist(), [labels[index] for index in masked])

    loss = mlm_loss(logits, torch.tensor(labels))

    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("labels", [[], [0, 0]])
def test_mlm_without_masked_words_is_zero_with_a_graph(labels: list[int]) -> None:
    logits = torch.randn(len(labels), 7, requires_grad=True)
    loss = mlm_loss(logits, torch.tensor(labels, dtype=torch.int64))
    loss.backward()

    assert loss == 0
    assert logits.grad.abs().sum() == 0


def test_cmpm_value_and_gradients_equal_the_published_code(reference: dict[str, Tensor]) -> None:
    image = reference["image_feats"].clone().requires_grad_()
    text = reference["text_feats"].clone().requires_grad_()
    loss = cmpm_loss(image, text, reference["pids"])
    loss.backward()

    torch.testing.assert_close(loss.detach(), reference["cmpm"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(image.grad, reference["cmpm_grad_image"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(text.grad, reference["cmpm_grad_text"], rtol=1e-4, atol=1e-6)


CLASSES = torch.randn(16, 9, generator=torch.Generator().manual_seed(8))
# The losses of two sets of features, as (image, text, pids), with their oracles.
FEATURE_LOSSES = {
    "cmpm": (cmpm_loss, cmpm_oracle),
    "cmpc": (partial(cmpc_loss, weight=CLASSES), partial(cmpc_oracle, weight=CLASSES.tolist())),
}
PROJECTED = pytest.mark.parametrize(("loss", "oracle"), FEATURE_LOSSES.values(), ids=FEATURE_LOSSES)


@PROJECTED
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_projection_losses_equal_the_loop(loss: Callable, oracle: Callable, batch: str, dtype: torch.dtype) -> None:
    pids = BATCHES[batch]
    image, text = features(len(pids), dtype=dtype)

    found = loss(image, text, torch.tensor(pids))

    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.item() == pytest.approx(oracle(image.tolist(), text.tolist(), pids), rel=1e-4, abs=1e-5)


@PROJECTED
def test_projection_losses_leave_their_inputs_and_reach_them(loss: Callable, oracle: Callable) -> None:
    pids = torch.tensor(BATCHES["repeated"])
    image, text = (side.requires_grad_() for side in features(len(pids), seed=6))
    before = [value.detach().clone() for value in (image, text, pids)]
    found = loss(image, text, pids)
    found.backward()

    assert all(torch.equal(value.detach(), old) for value, old in zip((image, text, pids), before))
    assert (image.grad.norm(dim=1) > 0).all() and (text.grad.norm(dim=1) > 0).all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(image, text, pids), found)


@PROJECTED
def test_projection_losses_of_features_of_zero_stay_finite(loss: Callable, oracle: Callable) -> None:
    image, text = (torch.zeros(3, 16, requires_grad=True) for _ in range(2))
    found = loss(image, text, torch.arange(3))
    found.backward()

    assert found.isfinite() and image.grad.isfinite().all() and text.grad.isfinite().all()


def test_cmpc_teaches_the_direction_of_the_classes_alone() -> None:
    image, text = features(4)
    weight = CLASSES.clone().requires_grad_()
    loss = cmpc_loss(image, text, torch.arange(4), weight)
    loss.backward()

    torch.testing.assert_close(cmpc_loss(image, text, torch.arange(4), 3 * weight), loss)
    torch.testing.assert_close((weight.grad * weight).sum(dim=0), torch.zeros(9), rtol=0, atol=1e-6)
    assert (weight.grad.norm(dim=0) > 0).all()


def test_diversity_equals_the_loop() -> None:
    parts = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(1))
    norms = []
    for sample in parts.tolist():
        cosines = cosine_oracle(sample, sample)
        others = [cosines[i][j] for i in range(3) for j in range(3) if i != j]
        norms.append(math.hypot(*others) / 3**2)

    assert diversity_loss(parts).item() == pytest.approx(sum(norms) / 4, rel=1e-5)
    assert torch.equal(diversity_loss(parts.bfloat16()), diversity_loss(parts.bfloat16().float()))


@pytest.mark.parametrize("parts", [torch.eye(3)[None], torch.ones(2, 1, 3), torch.zeros(2, 2, 3)])
def test_parts_without_anything_in_common_are_as_diverse_as_can_be(parts: Tensor) -> None:
    parts = parts.clone().requires_grad_()
    loss = diversity_loss(parts)
    loss.backward()

    assert loss == 0
    assert parts.grad.isfinite().all()


def test_diversity_of_equal_parts() -> None:
    assert diversity_loss(torch.ones(5, 2, 8)).item() == pytest.approx(math.sqrt(2) / 4)


def test_ranking_counts_what_beats_a_pair_and_not_what_comes_near() -> None:
    similarity = torch.tensor([[0.5, 0.4, 0.9], [0.6, 0.7, 0.1], [0.2, 0.8, 0.3]], requires_grad=True)
    loss = ranking_loss(similarity, torch.tensor([1, 2, 1]))
    loss.backward()
    # Images: 0 beats text 1 by .1, within the margin; 1 beats text 0 by .1; 2 loses to text 1 by .5.
    # Texts: 0 loses to image 1 by .1; 1 loses to image 2 by .1; 2 beats image 1.
    assert loss.item() == pytest.approx(0.7 + 0.3 + 0.3, rel=1e-5)
    assert torch.equal(similarity.grad, torch.tensor([[-1.0, 0, 0], [1, -1, 0], [0, 2, -1]]))


def test_ranking_of_a_tie_is_zero() -> None:
    """Where a negative scores as its pair does, it does not beat it."""
    similarity = torch.zeros(3, 3, requires_grad=True)
    loss = ranking_loss(similarity, torch.arange(3))
    loss.backward()

    assert loss == 0
    assert similarity.grad.abs().sum() == 0
