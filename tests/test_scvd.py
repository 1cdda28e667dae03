"""SCVD's head and objective against loops that follow the equations of docs/methods/scvd.md."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import tiny
import torch
from torch import Tensor

from tiprctl.config import ObjectiveConfig
from tiprctl.errors import UsageError
from tiprctl.losses import sdm_loss
from tiprctl.models.encoder import DualEncoder
from tiprctl.models.encodings import Encodings, encode
from tiprctl.models.heads import build_head
from tiprctl.models.heads.base import Related
from tiprctl.models.heads.division import VisualDivision
from tiprctl.objectives.composition import Composition

WIDTH, IMAGES, CAPTIONS, SLOTS = 16, 3, 4, 3
FOUND = torch.tensor([[True] * 3, [True, True, False], [True, False, False], [True, False, True]])
"""Which of four captions' phrases there are: all, some, one, a gap."""
TOKENS = ("images", "patches", "captions", "prompts")
PAIRS = list(product(range(IMAGES), range(CAPTIONS)))
"""An image and a caption each."""


def head(width: int = WIDTH, **options: float) -> VisualDivision:
    torch.manual_seed(0)
    division = build_head("division", options, width)
    # Beyond its start, so that what the projection and the biases do can be told.
    torch.nn.init.normal_(division.projection.weight, std=width**-0.5)
    for parameter in division.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.5)
    return division


def tokens(width: int = WIDTH, *, learn: bool = False) -> dict[str, Tensor]:
    """Three images of 8 patches and four captions of 3 phrases, by the names of `relate`."""
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "images": (IMAGES, width),
        "patches": (IMAGES, 8, width),
        "captions": (CAPTIONS, width),
        "prompts": (CAPTIONS, SLOTS, width),
    }
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: tensor.requires_grad_(learn) for name, tensor in tensors.items()} | {"found": FOUND}


def cosine(first: Tensor, second: Tensor) -> float:
    return (first @ second / (first.norm() * second.norm())).item()


def region_oracle(division: VisualDivision, patches: Tensor, prompt: Tensor) -> Tensor:
    """The patches of one image, weighed by one prompt in each attention head."""
    cross, attn = division.cross, division.cross.attn
    width = len(prompt)
    context = cross.ln_context(patches)
    query = attn.in_proj_weight[:width] @ cross.ln_query(prompt) + attn.in_proj_bias[:width]
    heads = []
    for part in range(attn.num_heads):
        size = width // attn.num_heads
        rows = torch.arange(part * size, (part + 1) * size)
        scores, values = [], []
        for patch in context:
            key = attn.in_proj_weight[width + rows] @ patch + attn.in_proj_bias[width + rows]
            scores.append(query[rows] @ key / math.sqrt(size))
            values.append(attn.in_proj_weight[2 * width + rows] @ patch + attn.in_proj_bias[2 * width + rows])
        weights = torch.stack(scores).softmax(0)
        heads.append(sum(weight * value for weight, value in zip(weights, values)))
    return division.ln_region(attn.out_proj(torch.cat(heads)))


def focus_oracle(regions: Tensor, prompts: Tensor, found: Tensor, temperature: float) -> list[float]:
    powers = [
        math.exp(cosine(region, prompt) / temperature) if here else 0.0
        for region, prompt, here in zip(regions, prompts, found)
    ]
    return [power / sum(powers) if power else 0.0 for power in powers]


def rows_oracle(anchors: list[Tensor], others: list[Tensor], labels: list[int]) -> list[float]:
    """CMPM of each anchor in one direction."""
    rows = []
    for anchor, label in zip(anchors, labels):
        logits = torch.stack([anchor @ other / other.norm() for other in others])
        matches = torch.tensor([float(label == other) for other in labels])
        p, q = logits.softmax(0), matches / matches.norm()
        rows.append((p * (p.log() - (q + 1e-8).log())).sum().item())
    return rows


def pair_oracle(first: list[Tensor], second: list[Tensor], labels: list[int]) -> list[float]:
    """CMPM of each pair, both directions."""
    return [sum(pair) for pair in zip(rows_oracle(first, second, labels), rows_oracle(second, first, labels))]


# The head


@pytest.mark.parametrize("width", [WIDTH, 128])
@torch.no_grad()
def test_a_region_is_what_its_prompt_finds_among_the_patches(width: int) -> None:
    division, given = head(width), tokens(width)
    regions = division.localise(given["patches"], given["prompts"])
    for image, caption in PAIRS:
        for slot in range(SLOTS):
            expected = region_oracle(division, given["patches"][image], given["prompts"][caption, slot])
            torch.testing.assert_close(regions[image, caption, slot], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_region_holds_nothing_of_its_prompt() -> None:
    """Where all patches are equal, every prompt finds the same."""
    given = tokens()
    regions = head().localise(given["patches"][:, :1].expand(-1, 8, -1), given["prompts"])
    torch.testing.assert_close(regions, regions[:, :1, :1].expand_as(regions))
    assert regions[0, 0, 0].std() > 0.1


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@torch.no_grad()
def test_focus_is_a_softmax_over_the_phrases_that_are_there(temperature: float) -> None:
    division, given = head(focus_temperature=temperature), tokens()
    related = division.relate(**given)
    for image, caption in PAIRS:
        expected = focus_oracle(related.regions[image, caption], given["prompts"][caption], FOUND[caption], temperature)
        torch.testing.assert_close(related.focus[image, caption], torch.tensor(expected))
    torch.testing.assert_close(related.focus.sum(2), torch.ones(IMAGES, CAPTIONS))
    assert (related.focus[:, ~FOUND] == 0).all()


@torch.no_grad()
def test_a_caption_is_reconstructed_from_the_prompts_in_focus() -> None:
    division, given = head(), tokens()
    focus = torch.rand(IMAGES, CAPTIONS, SLOTS, generator=torch.Generator().manual_seed(2))
    captions = division.reconstruct(given["captions"], given["prompts"], focus)
    for image, caption in PAIRS:
        mixed = sum(weight * prompt for weight, prompt in zip(focus[image, caption], given["prompts"][caption]))
        expected = given["captions"][caption] + division.projection.weight @ mixed
        torch.testing.assert_close(captions[image, caption], expected)


@torch.no_grad()
def test_at_the_start_a_little_of_the_prompts_is_added_and_not_lost_in_half_precision() -> None:
    torch.manual_seed(0)
    division = build_head("division", {}, 512)
    given = {name: tokens(512)[name].bfloat16() for name in ("captions", "prompts")}
    focus, captions = (FOUND / 3).expand(IMAGES, -1, -1), given["captions"].float()
    added = division.reconstruct(captions, given["prompts"].float(), focus) - captions
    assert 0 < added.norm(dim=2).max() < 0.02 * captions.norm(dim=1).min()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = division.reconstruct(**given, focus=focus)
    torch.testing.assert_close(half - captions, added)


@pytest.mark.parametrize("local_weight", [0.0, 0.5])
@torch.no_grad()
def test_a_pair_scores_by_its_caption_and_by_its_phrases(local_weight: float) -> None:
    division, given = head(local_weight=local_weight, focus_temperature=0.1), tokens()
    scores = division.pair_scores(**given)
    assert scores.shape == (IMAGES, CAPTIONS)
    for image, caption in PAIRS:
        prompts, found = given["prompts"][caption], FOUND[caption]
        regions = [region_oracle(division, given["patches"][image], prompt) for prompt in prompts]
        focus = focus_oracle(torch.stack(regions), prompts, found, 0.1)
        mixed = sum(weight * prompt for weight, prompt in zip(focus, prompts))
        text = given["captions"][caption] + division.projection.weight @ mixed
        local = sum(weight * cosine(region, prompt) for weight, region, prompt in zip(focus, regions, prompts))
        expected = (cosine(given["images"][image], text) + local_weight * local) / (1 + local_weight)
        assert scores[image, caption].item() == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_a_pair_scores_the_same_whatever_is_beside_it() -> None:
    division, given = head(), tokens()
    scores = division.pair_scores(**given)
    for image, caption in PAIRS:
        alone = {name: given[name][image, None] for name in ("images", "patches")}
        alone |= {name: given[name][caption, None] for name in ("captions", "prompts", "found")}
        torch.testing.assert_close(division.pair_scores(**alone), scores[image, None, caption, None])


@torch.no_grad()
def test_the_order_of_the_phrases_changes_nothing() -> None:
    division, given = head(), tokens()
    order = torch.tensor([2, 0, 1])
    turned = given | {"prompts": given["prompts"][:, order], "found": FOUND[:, order]}
    torch.testing.assert_close(division.pair_scores(**turned), division.pair_scores(**given))


def test_what_stands_in_the_place_of_a_missing_phrase_changes_nothing() -> None:
    division, given = head(), tokens(learn=True)
    scores = division.pair_scores(**given)
    other = torch.where(FOUND[:, :, None], given["prompts"], 7.0)
    torch.testing.assert_close(division.pair_scores(**given | {"prompts": other}), scores)
    fewer = {name: given[name][2:3] for name in ("captions", "prompts", "found")}
    fewer |= {name: fewer[name][:, :1] for name in ("prompts", "found")}
    torch.testing.assert_close(division.pair_scores(**given | fewer), scores[:, 2:3])
    scores.sum().backward()
    assert (given["prompts"].grad[~FOUND] == 0).all()


def test_gradients_reach_all_that_a_pair_is_made_of() -> None:
    division, given = head(), tokens(learn=True)
    division.pair_scores(**given)[1, :3].sum().backward()
    for name, reached in {"images": [1], "patches": [1], "captions": [0, 1, 2], "prompts": [0, 1, 2]}.items():
        assert given[name].grad.flatten(1).abs().sum(1).nonzero().flatten().tolist() == reached
    assert (given["prompts"].grad[:3][FOUND[:3]].abs().sum(1) > 0).all()
    assert all(parameter.grad.abs().sum() > 0 for parameter in division.parameters())


def test_a_token_of_zeros_has_a_score_and_gradients() -> None:
    division, given = head(), tokens()
    given |= {name: torch.zeros_like(given[name]).requires_grad_() for name in TOKENS}
    scores = division.pair_scores(**given)
    scores.sum().backward()
    assert (scores == 0).all()
    assert all(given[name].grad.isfinite().all() for name in TOKENS)


@pytest.mark.parametrize("half", [False, True])
def test_what_the_gradient_keeps_of_the_pairs_is_a_few_times_the_regions(half: bool) -> None:
    division, given = head(64), tokens(64, learn=True)
    given |= {name: given[name].detach().repeat(4, *[1] * (given[name].ndim - 1)) for name in given}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    given["patches"].requires_grad_()
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=half),
    ):
        related = division.relate(**given)
    regions = 4 * related.regions.numel()
    assert sum(size for size in kept.values() if size >= regions // 2) <= 4 * regions
    assert related.scores.requires_grad


@torch.no_grad()
def test_half_precision_scores_in_full() -> None:
    """The regions are rounded, and nothing that is made of them."""
    division, given = head(), tokens()
    full = division.pair_scores(**given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = division.relate(**given)
    cosines = torch.cosine_similarity(half.regions.float(), given["prompts"], dim=3)
    focus = division.focus(cosines, FOUND)
    text = division.reconstruct(given["captions"], given["prompts"], focus)
    whole = torch.cosine_similarity(given["images"][:, None], text, dim=2)
    torch.testing.assert_close(half.focus, focus)
    torch.testing.assert_close(half.scores, (whole + 0.5 * (focus * cosines).sum(2)) / 1.5)
    assert half.regions.dtype == torch.bfloat16
    torch.testing.assert_close(half.scores, full, rtol=0, atol=0.03)


@torch.no_grad()
def test_what_is_indexed_is_what_the_head_global_gives() -> None:
    plain, batch = tiny.encoder(), tiny.batch()
    divided = DualEncoder(plain.clip, "division")
    assert torch.equal(divided.image_features(batch.pixels), plain.image_features(batch.pixels))
    assert torch.equal(divided.text_features(batch.token_ids), plain.text_features(batch.token_ids))
    assert divided.head.width == plain.head.width
    assert divided.head.reranks and not plain.head.reranks


@pytest.mark.parametrize(("option", "value"), [("focus_temperature", 0.0), ("local_weight", -1.0), ("depth", 2)])
def test_options_that_mean_nothing_are_refused(option: str, value: float) -> None:
    with pytest.raises(UsageError, match=option):
        build_head("division", {option: value}, WIDTH)


# The objective


def compose(head_name: str = "division", **options: float) -> Composition:
    torch.manual_seed(0)
    scvd = ObjectiveConfig(name="scvd", options=options)
    return Composition(tiny.encoder(head=head_name), [scvd], identities=3)


def noise(size: int = 6, **prompts: list[list[int]] | list[list[bool]]) -> tiny.NoiseBatch:
    """A batch of noise whose captions have other prompts, or fewer: `index` and `found`."""
    batch = tiny.batch(size)
    batch.prompts = replace(batch.prompts, **{name: torch.tensor(rows) for name, rows in prompts.items()})
    return batch


def encoded(composition: Composition, batch: tiny.NoiseBatch) -> Encodings:
    return encode(composition.encoder, batch, composition.needs(0.0), torch.Generator())


SOME = [[True] * 3, [True, True, False], [True, False, False], [True, False, True], [True] * 3, [True, False, False]]
REPEATED = [[0, 1, 2], [0, 1, 0], [3, 0, 0], [0, 0, 2], [2, 3, 1], [1, 0, 0]]


def related_of(composition: Composition, batch: tiny.NoiseBatch, image: int, caption: int) -> Related:
    """One image and one caption as re-ranking looks at them, with no other pair beside them."""
    encoder, prompts = composition.encoder, batch.prompts
    seen = encoder.see(batch.pixels[image, None])
    return encoder.head.relate(
        seen.whole,
        seen.values[:, 1:],
        encoder.text_features(batch.token_ids[caption, None]),
        encoder.text_features(prompts.token_ids[prompts.index[caption]])[None],
        prompts.found[caption, None],
    )


@torch.no_grad()
def test_every_image_is_related_to_every_caption_as_in_reranking() -> None:
    composition, batch = compose(), noise(index=REPEATED, found=SOME)
    related = encoded(composition, batch).related
    for image in range(6):
        for caption in range(6):
            expected = related_of(composition, batch, image, caption)
            for name in ("regions", "focus", "scores"):
                torch.testing.assert_close(getattr(related, name)[image, caption], getattr(expected, name)[0, 0])


@torch.no_grad()
def test_the_loss_is_that_of_the_whole_of_all_scores_and_of_each_slot_by_focus() -> None:
    composition = compose(matching=0.7, local=0.3, temperature=0.1)
    batch = noise(index=REPEATED, found=SOME)
    enc = encoded(composition, batch)
    output = composition.objectives["scvd"](enc, batch)
    pids = batch.pids.tolist()
    every = [[related_of(composition, batch, image, caption) for caption in range(6)] for image in range(6)]
    scores = torch.tensor([[related.scores.item() for related in row] for row in every])
    expected = {
        "global": sum(pair_oracle(list(enc.image), list(enc.text), pids)) / 6,
        "matching": sdm_loss(scores, batch.pids, logit_scale=10).item(),
        "local": 0.0,
    }
    for slot in range(SLOTS):
        here = [pair for pair in range(6) if SOME[pair][slot]]
        regions = [every[pair][pair].regions[0, 0, slot] for pair in here]
        prompts = [enc.prompts.values[pair, slot] for pair in here]
        losses = pair_oracle(regions, prompts, [REPEATED[pair][slot] for pair in here])
        trust = [every[pair][pair].focus[0, 0, slot].item() for pair in here]
        expected["local"] += sum(weight * loss for weight, loss in zip(trust, losses)) / 6
    for name, value in expected.items():
        assert output.figures[name].item() == pytest.approx(value, rel=1e-4), name
    total = expected["global"] + 0.7 * expected["matching"] + 0.3 * expected["local"]
    assert output.loss.item() == pytest.approx(total, rel=1e-4)


def test_the_focus_does_not_learn_to_trust_what_is_aligned_already() -> None:
    composition, batch = compose(), noise()
    enc = encoded(composition, batch)
    focus = enc.related.focus.detach().requires_grad_()
    vars(enc)["related"] = replace(enc.related, focus=focus)
    composition.objectives["scvd"](enc, batch).loss.backward()
    assert focus.grad is None


def test_the_matching_teaches_the_phrases_of_a_caption_in_the_images_of_others() -> None:
    composition, batch = compose(local=0.0), noise(found=SOME)
    enc = encoded(composition, batch)
    enc.related.regions.retain_grad()
    composition.objectives["scvd"](enc, batch).loss.backward()
    learns = enc.related.regions.grad.abs().sum(dim=3) > 0
    assert torch.equal(learns, torch.tensor(SOME).expand(6, 6, SLOTS))
    assert all(parameter.grad.abs().sum() > 0 for parameter in composition.encoder.head.parameters())


def test_half_precision_matches_in_full() -> None:
    composition, batch = compose(), noise(found=SOME)
    full = encoded(composition, batch).related.scores
    with torch.autocast("cpu", dtype=torch.bfloat16):
        related = encoded(composition, batch).related
        parts = composition(batch, 0.0, torch.Generator()).parts
    assert related.scores.dtype == parts["scvd/matching"].dtype == torch.float32
    assert related.regions.dtype == torch.bfloat16
    torch.testing.assert_close(related.scores, full, rtol=0, atol=0.03)


def test_phrases_of_the_same_words_are_no_negatives() -> None:
    composition, batch = compose(), noise(index=[[0] * 3] * 6)
    enc, objective = encoded(composition, batch), composition.objectives["scvd"]
    apart = replace(enc, prompts=replace(enc.prompts, index=torch.arange(6 * SLOTS).view(6, SLOTS)))
    same, other = (objective(each, batch).figures["local"].item() for each in (enc, apart))
    # Where all match, q is 1 / sqrt(6) for each: more than any softmax gives to all of them. Else log(1e-8) costs.
    assert -2 * math.log(6**0.5) <= same < 0
    assert other > 10


ODD = {
    "one pair": {"size": 1},
    "no second phrase": {"found": [[True, False, False]] * 6},
    "a second phrase in one caption": {"size": 2, "found": [[True] * 3, [True, False, False]]},
    "the same phrases": {"index": [[0] * 3] * 6},
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("people", ["distinct", "one"])
def test_odd_batches_have_finite_losses_and_gradients(odd: str, people: str) -> None:
    composition, batch = compose(), noise(**ODD[odd])
    batch.pids = torch.arange(len(batch.pids)) * (people == "distinct")
    losses = composition(batch, 0.0, torch.Generator())
    losses.total.backward()
    gradients = [parameter.grad for parameter in composition.parameters() if parameter.grad is not None]
    assert losses.total.isfinite() and gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_it_learns_from_noise_and_leaves_the_batch_alone() -> None:
    composition, batch, before = compose(), noise(found=SOME), noise(found=SOME)
    optimizer = torch.optim.Adam(composition.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        losses.append(composition(batch, 0.0, torch.Generator()).total)
        losses[-1].backward()
        optimizer.step()
    assert losses[0] > losses[1] > losses[2]
    assert all(parameter.grad.abs().sum() > 0 for parameter in composition.encoder.parameters())
    for field in ("token_ids", "index", "found"):
        assert torch.equal(getattr(batch.prompts, field), getattr(before.prompts, field))


def test_image_caption_and_prompts_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    composition, batch = compose(), noise()
    passes = tiny.tower_passes(monkeypatch)
    composition(batch, 0.0, torch.Generator())
    assert [len(inputs) for inputs in passes["encode_image"]] == [6]
    assert [len(inputs) for inputs in passes["encode_text"]] == [6, 4]


def test_another_head_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="scvd needs the head division, but the model has the head global") as raised:
        compose("global")
    assert "model.head=division" in raised.value.remedy
