from dataclasses import replace

import published
import pytest
import tiny
import torch

from tiprctl.config import ObjectiveConfig
from tiprctl.errors import UsageError
from tiprctl.losses import restoration_loss
from tiprctl.models.clip import Clip
from tiprctl.models.encoder import DualEncoder
from tiprctl.models.encodings import ImageMask, Needs, encode
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


SEN = published.arrays("sen")
OUTPUTS = published.outputs(SEN)


@pytest.fixture(scope="module")
def step():
    """A step of the published SEN, with the patches that it kept and those whose loss it counted."""
    order = SEN["masking_noise"][:, 1:].argsort(dim=1)
    kept = int(193 * (1 - 0.7))  # with the class token, the noise of whose column is unused
    drawn = {
        "tiprctl.models.encodings.random_keep": order[:, : kept - 1],
        "tiprctl.objectives.tir.hidden_patches": hidden_patches(order[:, :kept], 192),
    }
    names = {"sdm": "sdm", "id": "id", "tir": "mae", "triplet": "tri"}
    step = published.step("sen-published", published.SEN, SEN, names, drawn)
    restoration = step.model.objectives["tir"]
    prediction = restoration.restore(step.enc)
    step.found.update(
        ids_restore=order.argsort(dim=1),
        mask=drawn["tiprctl.objectives.tir.hidden_patches"].float(),
        mask_ratio=torch.tensor(restoration.config.mask_ratio),
        image_global=step.enc.image,
        text_global=step.enc.text,
        grayscale_sample0_row0=grey(SEN["images"])[0, 0, 0],
        masked_image_tokens_sample0=step.enc.masked_image_tokens[0],
        pred_sample0=prediction[0],
        pred_mean_over_pixels=prediction.mean(2),
        pred_std_over_pixels=prediction.std(2),
    )
    return step


@pytest.mark.parametrize("name", OUTPUTS)
def test_each_value_equals_the_published_code(step, name):
    absolute = 0 if OUTPUTS[name].ndim == 0 else 1e-5
    torch.testing.assert_close(step.found[name].detach(), OUTPUTS[name], rtol=1e-4, atol=absolute)


def test_every_gradient_equals_the_published_code(step):
    published.assert_gradients(step.model, SEN, published.SEN)


def test_the_published_method_encodes_the_caption_once(step):
    (token_ids,) = step.texts
    assert torch.equal(token_ids, SEN["caption_ids"])


def test_the_published_loss_leaves_one_hidden_patch_an_image_out_and_ours_none(step):
    hidden = hidden_patches(step.enc.kept, 192)
    assert (hidden.sum(1) == 192 - 56).all()
    assert (hidden.sum(1) == OUTPUTS["mask"].sum(1) + 1).all()
    batch = tiny.NoiseBatch(SEN["images"], SEN["caption_ids"], SEN["pids"])
    restoration = step.model.objectives["tir"]
    with torch.no_grad():
        loss, prediction = restoration(step.enc, batch).loss, restoration.restore(step.enc)
    errors = (prediction - patchify(SEN["images"], 16)).square().mean(2)
    torch.testing.assert_close(loss, errors[hidden].mean())


def test_the_positions_equal_the_published_code(step):
    expected = published.arrays("losses")["sincos_24x8_d128"]
    torch.testing.assert_close(step.model.objectives["tir"].positions, expected, rtol=1e-5, atol=1e-5)


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
    assert compose().needs(0.0) == Needs(masked_image=ImageMask(0.7), text_tokens=True)
    needs = compose(tir(mask_ratio=0.5, attend_padding=True)).needs(0.0)
    assert needs == Needs(ImageMask(0.5), text_tokens=True, padded_text=True)


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
    needs = composition.needs(0.0).merge(Needs(padded_text=True))
    padded = encode(composition.encoder, batch, needs, generator())
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
