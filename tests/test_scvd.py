"""SCVD's head and objective against loops that follow the equations of docs/methods/scvd.md."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import tiny
import torch
from torch import Tensor

from tiprctl.config import ObjectiveConfig
from tiprctl.errors import UsageError
from tiprctl.losses import cmpm_loss, sdm_loss
from tiprctl.losses.similarity import cosine_similarity
from tiprctl.models.encoder import DualEncoder
from tiprctl.models.encodings import Encodings, encode
from tiprctl.models.heads import build_head
from tiprctl.models.heads.base import Related
from tiprctl.models.heads.division import VisualDivision
from tiprctl.objectives.composition import Composition

WIDTH, SLOTS = 16, 3
FOUND = torch.tensor([[True] * 3, [True, True, False], [True, False, False], [True, False, True], [False] * 3])
"""Which of five captions' phrases there are: all, some, a gap, none."""
PAIR = ("image", "patches", "text", "prompts")


def head(width: int = WIDTH, **options: float) -> VisualDivision:
    torch.manual_seed(0)
    division = build_head("division", options, width)
    # Beyond its start, so that what the projection does can be told.
    torch.nn.init.normal_(division.projection.weight, std=width**-0.5)
    return division


def pairs(width: int = WIDTH, *, learn: bool = False) -> dict[str, Tensor]:
    """Five pairs of 8 patches and 3 phrases, by the names of `pair_scores`."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"image": (5, width), "patches": (5, 8, width), "text": (5, width), "prompts": (5, SLOTS, width)}
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
    division, given = head(width), pairs(width)
    regions = division.localise(given["patches"], given["prompts"])
    for pair in range(5):
        for slot in range(SLOTS):
            expected = region_oracle(division, given["patches"][pair], given["prompts"][pair, slot])
            torch.testing.assert_close(regions[pair, slot], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_region_holds_nothing_of_its_prompt() -> None:
    """Where all patches are equal, every prompt finds the same."""
    given = pairs()
    regions = head().localise(given["patches"][:, :1].expand(-1, 8, -1), given["prompts"])
    torch.testing.assert_close(regions, regions[:, :1].expand(-1, SLOTS, -1))
    assert regions[0, 0].std() > 0.1


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@torch.no_grad()
def test_focus_is_a_softmax_over_the_phrases_that_are_there(temperature: float) -> None:
    division, given = head(focus_temperature=temperature), pairs()
    regions = division.localise(given["patches"], given["prompts"])
    cosines = torch.cosine_similarity(regions, given["prompts"], dim=-1)
    focus = division.focus(cosines, FOUND)
    expected = [focus_oracle(*each, temperature) for each in zip(regions, given["prompts"], FOUND)]
    torch.testing.assert_close(focus, torch.tensor(expected))
    torch.testing.assert_close(focus.sum(1), FOUND.any(1).float())
    assert (focus[~FOUND] == 0).all()


@torch.no_grad()
def test_a_caption_is_reconstructed_from_the_prompts_in_focus() -> None:
    division, given = head(), pairs()
    focus = torch.tensor([[0.2, 0.5, 0.3], [0.9, 0.1, 0.0], [1.0, 0.0, 0.0], [0.4, 0.0, 0.6], [0.0, 0.0, 0.0]])
    text = division.reconstruct(given["text"], given["prompts"], focus)
    for pair in range(5):
        mixed = sum(weight * prompt for weight, prompt in zip(focus[pair], given["prompts"][pair]))
        expected = given["text"][pair] + division.projection.weight @ mixed
        torch.testing.assert_close(text[pair], expected)


@torch.no_grad()
def test_at_the_start_the_reconstructed_caption_is_the_caption_nearly() -> None:
    torch.manual_seed(0)
    division, given = build_head("division", {}, 512), pairs(512)
    moved = division.reconstruct(given["text"], given["prompts"], FOUND / 3) - given["text"]
    assert 0 < moved.norm(dim=1).max() < 0.02 * given["text"].norm(dim=1).min()


@pytest.mark.parametrize("local_weight", [0.0, 0.5])
@torch.no_grad()
def test_a_pair_scores_by_its_caption_and_by_its_phrases(local_weight: float) -> None:
    division, given = head(local_weight=local_weight, focus_temperature=0.1), pairs()
    scores = division.pair_scores(**given)
    for pair in range(5):
        prompts, found = given["prompts"][pair], FOUND[pair]
        regions = [region_oracle(division, given["patches"][pair], prompt) for prompt in prompts]
        focus = focus_oracle(torch.stack(regions), prompts, found, 0.1)
        mixed = sum(weight * prompt for weight, prompt in zip(focus, prompts))
        text = given["text"][pair] + division.projection.weight @ mixed
        local = sum(weight * cosine(region, prompt) for weight, region, prompt in zip(focus, regions, prompts))
        whole, weight = cosine(given["image"][pair], text), local_weight * found.any().item()
        assert scores[pair].item() == pytest.approx((whole + weight * local) / (1 + weight), abs=1e-5)


@torch.no_grad()
def test_the_order_of_the_phrases_changes_nothing() -> None:
    division, given = head(), pairs()
    order = torch.tensor([2, 0, 1])
    turned = given | {"prompts": given["prompts"][:, order], "found": FOUND[:, order]}
    torch.testing.assert_close(division.pair_scores(**turned), division.pair_scores(**given))


def test_what_stands_in_the_place_of_a_missing_phrase_changes_nothing() -> None:
    division, given = head(), pairs(learn=True)
    scores = division.pair_scores(**given)
    other = torch.where(FOUND[:, :, None], given["prompts"], 7.0)
    torch.testing.assert_close(division.pair_scores(**given | {"prompts": other}), scores)
    fewer = {name: tensor[2:3] for name, tensor in given.items()}
    fewer |= {name: fewer[name][:, :1] for name in ("prompts", "found")}
    torch.testing.assert_close(division.pair_scores(**fewer), scores[2:3])
    scores.sum().backward()
    assert (given["prompts"].grad[~FOUND] == 0).all()


def test_a_caption_without_phrases_scores_by_itself() -> None:
    division, given = head(), pairs(learn=True)
    scores = division.pair_scores(**given)
    assert scores[4].item() == pytest.approx(cosine(given["image"][4], given["text"][4]), abs=1e-6)
    scores[4].backward()
    assert all(given[name].grad.isfinite().all() for name in PAIR)


def test_gradients_reach_all_that_a_pair_is_made_of() -> None:
    division, given = head(), pairs(learn=True)
    division.pair_scores(**given)[:4].sum().backward()
    for name in PAIR:
        reached = given[name].grad.flatten(1).abs().sum(1) > 0
        assert reached.tolist() == [True] * 4 + [False]
    assert (given["prompts"].grad[FOUND].abs().sum(1) > 0).all()
    assert all(parameter.grad.abs().sum() > 0 for parameter in division.parameters())


@torch.no_grad()
def test_half_precision_scores_in_full() -> None:
    division, given = head(), pairs()
    full = division.pair_scores(**given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = division.pair_scores(**given)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0, atol=0.03)


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


SOME = [[True] * 3, [True, True, False], [True, False, False], [True, False, True], [False] * 3, [True, False, False]]
REPEATED = [[0, 1, 2], [0, 1, 0], [3, 0, 0], [0, 0, 2], [0, 0, 0], [1, 0, 0]]


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
                torch.testing.assert_close(getattr(related, name)[6 * image + caption], getattr(expected, name)[0])


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
        regions = [every[pair][pair].regions[0, slot] for pair in here]
        prompts = [enc.prompts[pair, slot] for pair in here]
        losses = pair_oracle(regions, prompts, [REPEATED[pair][slot] for pair in here])
        trust = [every[pair][pair].focus[0, slot].item() for pair in here]
        expected["local"] += sum(weight * loss for weight, loss in zip(trust, losses)) / 6
    for name, value in expected.items():
        assert output.figures[name].item() == pytest.approx(value, rel=1e-4), name
    total = expected["global"] + 0.7 * expected["matching"] + 0.3 * expected["local"]
    assert output.loss.item() == pytest.approx(total, rel=1e-4)


def test_the_focus_does_not_learn_to_trust_what_is_aligned_already() -> None:
    composition, batch = compose(), noise()
    enc = encoded(composition, batch)
    focus = enc.related.focus.detach().requires_grad_()
    composition.objectives["scvd"](replace(enc, related=replace(enc.related, focus=focus)), batch).loss.backward()
    assert focus.grad is None


def test_the_matching_teaches_the_phrases_of_a_caption_in_the_images_of_others() -> None:
    composition, batch = compose(local=0.0), noise(found=SOME)
    enc = encoded(composition, batch)
    enc.related.regions.retain_grad()
    composition.objectives["scvd"](enc, batch).loss.backward()
    learns = enc.related.regions.grad.abs().sum(dim=2).view(6, 6, SLOTS) > 0
    assert torch.equal(learns, torch.tensor(SOME).expand(6, 6, SLOTS))
    assert all(parameter.grad.abs().sum() > 0 for parameter in composition.encoder.head.parameters())


def test_half_precision_matches_in_full() -> None:
    composition, batch = compose(), noise(found=SOME)
    full = encoded(composition, batch).related.scores
    with torch.autocast("cpu", dtype=torch.bfloat16):
        enc = encoded(composition, batch)
        parts = composition(batch, 0.0, torch.Generator()).parts
    assert enc.related.scores.dtype == parts["scvd/matching"].dtype == torch.float32
    assert enc.related.regions.dtype == torch.bfloat16
    torch.testing.assert_close(enc.related.scores, full, rtol=0, atol=0.03)


def test_phrases_of_the_same_words_are_no_negatives() -> None:
    composition, batch = compose(), noise(index=[[0] * 3] * 6)
    enc, objective = encoded(composition, batch), composition.objectives["scvd"]
    apart = replace(enc, prompt_index=torch.arange(6 * SLOTS).view(6, SLOTS))
    same, other = (objective(each, batch).figures["local"].item() for each in (enc, apart))
    # Where all match, q is 1 / sqrt(6) for each: more than any softmax gives to all of them. Else log(1e-8) costs.
    assert -2 * math.log(6**0.5) <= same < 0
    assert other > 10


ODD = {
    "one pair": {"size": 1},
    "no second phrase": {"found": [[True, False, False]] * 6},
    "no phrase at all": {"found": [[False] * 3] * 6},
    "phrases in one caption": {"size": 2, "found": [[True] * 3, [False] * 3]},
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


def test_without_phrases_the_local_loss_is_nothing() -> None:
    composition = compose()
    parts = composition(noise(found=[[False] * 3] * 6), 0.0, torch.Generator()).parts
    assert parts["scvd/local"] == 0
    batch = noise()
    image, text = composition.encoder.image_features(batch.pixels), composition.encoder.text_features(batch.token_ids)
    torch.testing.assert_close(parts["scvd/global"], cmpm_loss(image, text, batch.pids).detach())
    matching = sdm_loss(cosine_similarity(image, text), batch.pids, logit_scale=50)
    torch.testing.assert_close(parts["scvd/matching"], matching.detach())


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
