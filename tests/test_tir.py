from dataclasses import replace

import published
import pytest
import tiny
import torch

from tiprctl.config import ObjectiveConfig
from tiprctl.errors import UsageError
from tiprctl.losses import identity_loss, restoration_loss, sdm_loss, triplet_loss
from tiprctl.models.clip import Clip
from tiprctl.models.encoder import DualEncoder
from tiprctl.models.encodings import Encodings, ImageMask, Needs, encode
from tiprctl.models.masking import grey, hidden_patches, patchify, standardise, unpatchify
from tiprctl.objectives.composition import Composition


def generator():
    return torch.Generator().manual_seed(0)


def tir(**options):
    return ObjectiveConfig(name="tir", options=options)


def compose(*configs, encoder=None):
    torch.manual_seed(0)
    return Composition(encoder or tiny.encoder(), configs or (tir(depth=2),), identities=3)


def encoded(composition, batch):
    return encode(composition.encoder, batch, composition.needs(0.0), generator())


def visible_in_the_published_code(noise):
    """Patches that SEN's masking keeps: the class token counts among the 30% and the noise of its column is unused."""
    kept = int(noise.shape[1] * (1 - 0.7))
    return noise[:, 1:].argsort(dim=1)[:, : kept - 1]


@pytest.fixture(scope="module")
def sen():
    return published.arrays("sen")


@pytest.fixture(scope="module")
def model(sen):
    """SEN: its weights, with one backward pass of its loss done, and what came of it."""
    options = {"mask_ratio": 0.7, "depth": 2, "attend_padding": True}
    composition = published.composition(published.SEN, sen, *tiny.objectives("sdm", "id", "triplet"), tir(**options))
    clip, objectives = composition.encoder.clip, composition.objectives
    kept = visible_in_the_published_code(sen["masking_noise"])
    image_tokens, text_tokens = clip.encode_image(sen["images"]), clip.encode_text(sen["caption_ids"])
    enc = Encodings(
        token_ids=sen["caption_ids"],
        image_tokens=image_tokens,
        text_tokens=text_tokens,
        image=image_tokens[:, 0],
        text=text_tokens[torch.arange(6), sen["caption_ids"].argmax(1)],
        masked_image_tokens=clip.encode_image(grey(sen["images"]), keep=kept),
        kept=kept,
    )
    classify, prediction = objectives["id"].classifier, objectives["tir"].restore(enc)
    losses = {
        "sdm": sdm_loss(enc.similarity, sen["pids"], logit_scale=50),
        "id": identity_loss(classify(enc.image), classify(enc.text), sen["pids"]),
        "tri": 10 * triplet_loss(enc.similarity, sen["pids"]),
        "mae": 10 * restoration_loss(prediction, patchify(sen["images"], 16), sen["mask"].bool()),
    }
    sum(losses.values()).backward()
    return composition, enc, prediction.detach(), {name: loss.detach() for name, loss in losses.items()}


@pytest.mark.parametrize("name", ["sdm", "id", "tri", "mae"])
def test_each_loss_equals_the_published_code(sen, model, name):
    torch.testing.assert_close(model[3][name], sen[f"ret.{name}_loss"], rtol=1e-4, atol=0)


def test_the_prediction_equals_the_published_code(sen, model):
    _, enc, prediction, _ = model
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(enc.masked_image_tokens[0].detach(), sen["masked_image_tokens_sample0"], **close)
    torch.testing.assert_close(prediction[0], sen["pred_sample0"], **close)
    torch.testing.assert_close(prediction.mean(2), sen["pred_mean_over_pixels"], **close)
    torch.testing.assert_close(prediction.std(2), sen["pred_std_over_pixels"], **close)


def test_every_gradient_equals_the_published_code(sen, model):
    published.assert_gradients(model[0], sen, published.SEN)


def test_the_published_loss_leaves_one_hidden_patch_an_image_out_and_ours_none(sen, model):
    composition, enc, prediction, _ = model
    hidden = hidden_patches(enc.kept, 192)
    assert (hidden.sum(1) == 192 - 56).all()
    assert (hidden.sum(1) == sen["mask"].sum(1) + 1).all()
    batch = tiny.NoiseBatch(sen["images"], sen["caption_ids"], sen["pids"])
    loss = composition.objectives["tir"](enc, batch).loss.detach()
    errors = (prediction - patchify(sen["images"], 16)).square().mean(2)
    torch.testing.assert_close(loss, errors[hidden].mean())


def test_the_positions_equal_the_published_code(model):
    expected = published.arrays("losses")["sincos_24x8_d128"]
    torch.testing.assert_close(model[0].objectives["tir"].positions, expected, rtol=1e-5, atol=1e-5)


def test_patches_and_grey_equal_the_published_code():
    losses = published.arrays("losses")
    patches = patchify(losses["mae_imgs"], 16)
    assert torch.equal(patches, losses["mae_patchify"])
    torch.testing.assert_close(grey(losses["mae_imgs"])[:, :1], losses["mae_grayscale"])


def test_patches_go_row_by_row_and_back():
    pixels = torch.arange(2 * 3 * 6 * 4).view(2, 3, 6, 4)
    patches = patchify(pixels, 2)
    assert patches.shape == (2, 6, 12)
    # the second patch of the first row: rows 0 and 1, columns 2 and 3, the three channels of each pixel together
    expected = [pixels[1, c, y, x] for y in (0, 1) for x in (2, 3) for c in range(3)]
    assert patches[1, 1].tolist() == expected
    assert torch.equal(unpatchify(patches, (3, 2)), pixels)


def test_standardised_patches_have_no_colour_of_their_own():
    patches = standardise(5 + 3 * torch.randn(2, 4, 48, generator=generator()))
    torch.testing.assert_close(patches.mean(2), torch.zeros(2, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(patches.std(2), torch.ones(2, 4))
    assert standardise(torch.ones(1, 1, 12)).abs().max() == 0


def test_the_loss_can_be_that_of_standardised_patches():
    composition, batch = compose(tir(normalise_patches=True)), tiny.batch()
    enc = encoded(composition, batch)
    objective = composition.objectives["tir"]
    expected = restoration_loss(
        objective.restore(enc), standardise(patchify(batch.pixels, 4)), hidden_patches(enc.kept, 8)
    )
    torch.testing.assert_close(objective(enc, batch).loss, expected)


def test_needs_the_grey_view_and_padding_only_where_it_is_looked_at():
    assert compose().needs(0.0) == Needs(masked_image=ImageMask(0.7))
    assert compose(tir(mask_ratio=0.5, attend_padding=True)).needs(0.0) == Needs(ImageMask(0.5), padded_text=True)


def test_tokens_stand_at_their_own_patches():
    """A decoder by loops: the visible tokens, one by one, at the places that they came from."""
    composition = compose()
    objective, enc = composition.objectives["tir"], encoded(composition, tiny.batch())
    tokens = objective._patches(enc)
    visible = objective.embed(objective.ln_visible(enc.masked_image_tokens))
    for image in range(6):
        expected = [objective.mask_token.weight[0]] * 9
        expected[0] = visible[image, 0]
        for index, patch in enumerate(enc.kept[image].tolist()):
            expected[1 + patch] = visible[image, 1 + index]
        torch.testing.assert_close(tokens[image], torch.stack(expected) + objective.positions)


def test_what_stands_in_the_padding_changes_nothing_unless_it_is_attended():
    def restored(padding, **options):
        composition, batch = compose(tir(**options)), tiny.batch()
        batch.token_ids[:, 5] = 99
        batch.token_ids[:, 6:] = padding
        return composition.objectives["tir"].restore(encoded(composition, batch))

    torch.testing.assert_close(restored(0), restored(7))
    assert not torch.allclose(restored(0, attend_padding=True), restored(7, attend_padding=True), atol=1e-4)


def test_the_length_of_the_padding_changes_nothing():
    composition, batch = compose(), tiny.batch()
    objective = composition.objectives["tir"]
    short = objective.restore(encoded(composition, batch))
    padded = encode(composition.encoder, batch, Needs(ImageMask(0.7), padded_text=True), generator())
    torch.testing.assert_close(objective.restore(padded), short)


def test_attention_is_a_distribution_over_the_caption():
    composition, batch = compose(), tiny.batch()
    batch.token_ids[0, 5:] = torch.tensor([99, 0, 0, 0])
    weights = composition.objectives["tir"].attention(encoded(composition, batch))
    assert weights.shape == (6, 8, 9)
    torch.testing.assert_close(weights.sum(2), torch.ones(6, 8))
    assert (weights[0, :, 6:] == 0).all()
    assert (weights[0, :, :6] > 0).all()


def test_attention_is_that_of_the_restoration():
    """With one head, what is attended is the values weighed by the attention."""
    composition = compose()
    objective, enc = composition.objectives["tir"], encoded(composition, tiny.batch())
    cross = objective.cross
    values = cross.ln_context(enc.text_tokens) @ cross.attn.in_proj_weight[32:].T + cross.attn.in_proj_bias[32:]
    expected = cross.attn.out_proj(objective.attention(enc) @ values)
    attended = cross(objective._patches(enc), enc.text_tokens, objective._words(enc))
    torch.testing.assert_close(attended[:, 1:], expected)


def test_the_caption_is_encoded_once_and_each_image_whole_and_masked(monkeypatch):
    calls = []
    for name in ("encode_image", "encode_text"):
        original = getattr(Clip, name)

        def spy(self, *args, name=name, original=original, **kwargs):
            calls.append(name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Clip, name, spy)
    composition = compose(*tiny.objectives("sdm", "id", "triplet"), tir(attend_padding=True))
    losses = composition(tiny.batch(), 0.0, generator())
    assert sorted(calls) == ["encode_image", "encode_image", "encode_text"]
    assert losses.parts.keys() == {"sdm", "id", "triplet", "tir"}


def test_gradients_reach_both_towers_and_all_of_the_decoder():
    composition = compose()
    composition(tiny.batch(), 0.0, generator()).total.backward()
    unmoved = [n for n, p in composition.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert unmoved == []


def test_steps_bring_the_loss_down_and_leave_the_batch_alone():
    composition, batch, before = compose(), tiny.batch(), tiny.batch()
    optimizer = torch.optim.SGD(composition.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = composition(batch, 0.0, generator()).total
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]
    assert torch.equal(batch.pixels, before.pixels) and torch.equal(batch.token_ids, before.token_ids)


def test_half_precision_computes_the_loss_in_full():
    composition, batch = compose(), tiny.batch()
    full = composition(batch, 0.0, generator()).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = composition(batch, 0.0, generator()).total
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0.02, atol=0)


def test_the_same_seed_gives_the_same_decoder_and_masks():
    first, second = (compose()(tiny.batch(), 0.0, generator()).total for _ in range(2))
    assert torch.equal(first, second)


def resized(**sizes):
    """The tiny encoder of another input; its weights are of no matter."""
    return DualEncoder(Clip(replace(tiny.CLIP, **sizes)))


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ({"image_size": (18, 8)}, {}, "4 does not divide 18 x 8 pixels"),
        ({"image_size": (16, 9)}, {}, "4 does not divide 16 x 9 pixels"),
        ({"stride": 2}, {}, "the stride is 2 and the patch 4 pixels"),
        ({}, {"mask_ratio": 0.05}, "hides none of 8 patches"),
        ({}, {"mask_ratio": 1.0}, "mask_ratio"),
        ({}, {"mask_ratio": 0.0}, "mask_ratio"),
        ({}, {"depth": 0}, "depth"),
    ],
)
def test_what_cannot_be_restored_is_refused(sizes, options, message):
    with pytest.raises(UsageError, match=message) as raised:
        compose(tir(**options), encoder=resized(**sizes))
    assert raised.value.where == "objective tir"
    assert raised.value.remedy
