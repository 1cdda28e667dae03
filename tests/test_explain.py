"""The explanation of a restoration: what is computed, and what the picture shows of it."""

from __future__ import annotations

import numpy as np
import pytest
import restoring
import torch
from PIL import Image

from tiprctl import canvas
from tiprctl.config import ObjectiveConfig
from tiprctl.data.batches import Batch
from tiprctl.errors import ImageError, InputError, UsageError
from tiprctl.explanation.picture import COLUMNS, MAP, PANEL, WIDTH, draw_explanation
from tiprctl.explanation.restoration import Explanation, Restored, WordMap, load_restorer, word_tokens
from tiprctl.models.encodings import encode
from tiprctl.models.masking import patchify
from tiprctl.pixels import denormalise, normalise
from tiprctl.shares import Share
from tiprctl.tokenizer import default_tokenizer

CPU = torch.device("cpu")
TEXT = "A woman in a red T-shirt, walking."


@pytest.fixture(scope="module")
def restorer(tmp_path_factory):
    return load_restorer(restoring.checkpoint(tmp_path_factory.mktemp("run") / "best.safetensors"), device=CPU)


@pytest.fixture(scope="module")
def crop(tmp_path_factory):
    return restoring.crop(tmp_path_factory.mktemp("crop") / "crop.png")


@pytest.fixture(scope="module")
def explanation(restorer, crop):
    return restorer.explain(crop, [TEXT, "a man", ""], seed=5)


@pytest.fixture(scope="module")
def encoded(crop):
    """The composition, the normalised image, and its encodings with TEXT, computed apart from the restorer."""
    composition = restoring.composition()
    pixels = normalise(torch.from_numpy(np.array(Image.open(crop))).permute(2, 0, 1)[None])
    token_ids = torch.from_numpy(default_tokenizer()(TEXT))
    batch = Batch(pixels=pixels, token_ids=token_ids, pids=torch.zeros(1, dtype=torch.int64), share=Share.whole(1))
    with torch.inference_mode():
        return (
            composition,
            pixels,
            encode(composition.encoder, batch, composition.needs(0.0), torch.Generator().manual_seed(5)),
        )


def test_all_texts_share_one_mask_that_the_seed_draws(restorer, crop, explanation):
    assert explanation.hidden.shape == (4, 2)
    assert explanation.hidden.sum() == 6
    same, other = (restorer.explain(crop, [TEXT, TEXT], seed=seed) for seed in (5, 6))
    assert np.array_equal(same.hidden, explanation.hidden)
    assert not np.array_equal(other.hidden, explanation.hidden)
    first, second = same.restored
    assert first.error == second.error == explanation.restored[0].error
    assert np.array_equal(first.pixels, second.pixels)


def test_the_texts_make_the_difference(explanation):
    assert [restored.text for restored in explanation.restored] == [TEXT, "a man", ""]
    assert len({restored.error for restored in explanation.restored}) == 3
    assert all(np.isfinite(restored.error) for restored in explanation.restored)


def test_error_is_the_mean_square_of_the_hidden_patches(encoded, explanation):
    composition, pixels, encodings = encoded
    with torch.inference_mode():
        prediction = composition.objectives["tir"].restore(encodings)[0]
    target = patchify(pixels, 4)[0]
    hidden = [index for index in range(8) if index not in encodings.kept[0].tolist()]
    assert hidden == np.flatnonzero(explanation.hidden).tolist()
    errors = [(prediction[index] - target[index]).square().mean().item() for index in hidden]
    assert explanation.restored[0].error == pytest.approx(sum(errors) / len(errors), rel=1e-5)


def test_restored_pixels_are_those_of_the_prediction(encoded, explanation):
    composition, _, encodings = encoded
    with torch.inference_mode():
        patches = composition.objectives["tir"].restore(encodings)[0].unflatten(1, (4, 4, 3))
    for index, patch in enumerate(patches):
        row, column = divmod(index, 2)
        colours = (denormalise(patch.permute(2, 0, 1)[None])[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
        drawn = explanation.restored[0].pixels[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        assert np.array_equal(drawn, colours)


def test_a_word_has_the_sum_of_what_looks_at_its_tokens(encoded, explanation):
    composition, _, encodings = encoded
    with torch.inference_mode():
        attention = composition.objectives["tir"].attention(encodings)[0].numpy()
    assert [word.word for word in explanation.words] == ["a", "woman", "in", "a", "red", "t-shirt", "walking"]
    # Start token, "a woman in a red", "t", "-", "shirt", ",", "walking", ".", end token.
    places = [[1], [2], [3], [4], [5], [6, 8], [10]]
    for word, tokens in zip(explanation.words, places):
        looks = np.array([sum(attention[patch, token] for token in tokens) for patch in range(8)])
        np.testing.assert_allclose(word.weights, (looks / looks.sum()).reshape(4, 2), rtol=1e-5)
        assert word.share == pytest.approx(looks.mean(), rel=1e-5)
        assert word.weights.sum() == pytest.approx(1)
    assert sum(word.share for word in explanation.words) < 1


def test_the_original_is_kept_and_the_grey_has_no_colour(crop, explanation):
    original = np.array(Image.open(crop))
    assert np.array_equal(explanation.original, original)
    luma = original @ np.array([0.2989, 0.5870, 0.1140])
    assert np.abs(explanation.grey - luma[..., None]).max() <= 1


@pytest.mark.parametrize(
    "text", ["A woman in a red coat", "unpronounceable gibberishness, twice!", "He wears (grey) t-shirts.", "", "?!"]
)
def test_word_tokens_are_those_of_the_words(text):
    tokenizer = default_tokenizer()
    row = tokenizer(text)[0].tolist()
    for word, places in word_tokens(text, tokenizer):
        pieces = [token for part in word.split("-") for token in tokenizer.encode(part)]
        assert [row[place] for place in places] == pieces
    assert len(word_tokens(text, tokenizer)) == len([word for word in text.split() if any(map(str.isalnum, word))])


def test_words_beyond_the_context_are_left_out():
    tokenizer = default_tokenizer()
    words = word_tokens("red " * 74 + "gibberishness coat", tokenizer)
    assert len(words) == 75
    assert words[-1] == ("gibberishness", [75])
    assert len(tokenizer.encode("gibberishness")) > 1


def test_checkpoints_without_restoration_are_refused(tmp_path):
    without = restoring.checkpoint(tmp_path / "sdm.safetensors", ObjectiveConfig(name="sdm"))
    for source in (without, "ViT-B-16/openai"):
        with pytest.raises(UsageError, match="No restoration can be read") as caught:
            load_restorer(source, device=CPU)
        assert caught.value.where == str(source)
        assert "tiprctl train --aux tir" in caught.value.remedy
    options = {**restoring.TIR.options, "normalise_patches": True}
    colourless = restoring.checkpoint(tmp_path / "flat.safetensors", ObjectiveConfig(name="tir", options=options))
    with pytest.raises(UsageError, match="no colours to show"):
        load_restorer(colourless, device=CPU)
    with pytest.raises(InputError, match="There is no such run"):
        load_restorer(tmp_path / "nowhere", device=CPU)


def test_the_objective_comes_from_the_checkpoint(restorer):
    saved = restoring.composition().objectives["tir"].state_dict()
    loaded = restorer.tir.state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    assert "epoch 3" in restorer.description


def test_a_restoration_that_looks_at_padding_is_explained_too(tmp_path, crop):
    options = {**restoring.TIR.options, "attend_padding": True}
    file = restoring.checkpoint(tmp_path / "padded.safetensors", ObjectiveConfig(name="tir", options=options))
    explanation = load_restorer(file, device=CPU).explain(crop, [TEXT, ""], seed=0)
    assert [word.word for word in explanation.words] == ["a", "woman", "in", "a", "red", "t-shirt", "walking"]
    assert 0 < sum(word.share for word in explanation.words) < 0.5
    assert explanation.restored[0].error != explanation.restored[1].error


def test_an_unreadable_image_is_explained(restorer, tmp_path):
    with pytest.raises(ImageError, match="no such image"):
        restorer.explain(tmp_path / "none.jpg", [TEXT], seed=0)


def test_denormalise_undoes_normalise():
    pixels = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(denormalise(normalise(pixels)), pixels)


HIDDEN = np.array([[True, False], [False, True]])


def synthetic(words: int = 3) -> Explanation:
    """A red original of 2 x 2 patches, restored in blue with A, in green with B, in black with none."""

    def plain(colour):
        return np.full((40, 20, 3), colour, np.uint8)

    weights = np.array([[0.7, 0.1], [0.1, 0.1]], np.float32)
    return Explanation(
        original=plain((255, 0, 0)),
        grey=plain((100, 100, 100)),
        hidden=HIDDEN,
        restored=(
            Restored("blue", plain((0, 0, 255)), 0.5),
            Restored("green", plain((0, 255, 0)), 0.6),
            Restored("", plain((0, 0, 0)), 0.7),
        ),
        words=tuple(WordMap(f"word{number}", weights, 0.2) for number in range(words)),
    )


def panels(picture: Image.Image) -> list[Image.Image]:
    """The five pictures of the row of restorations, which follows two headings of a line."""
    top = canvas.MARGIN + 2 * (canvas.line_height(24) + canvas.GAP)
    lefts = [canvas.MARGIN + column * (PANEL[0] + canvas.GAP) for column in range(5)]
    return [picture.crop((left, top, left + PANEL[0], top + PANEL[1])) for left in lefts]


def test_the_picture_shows_what_was_hidden_and_what_was_made_of_it():
    original, seen, *restored = panels(draw_explanation(synthetic()))
    hidden, visible = (PANEL[0] // 4, PANEL[1] // 4), (3 * PANEL[0] // 4, PANEL[1] // 4)
    assert original.getpixel(hidden) == original.getpixel(visible) == (255, 0, 0)
    assert "#{:02x}{:02x}{:02x}".format(*seen.getpixel(hidden)) == canvas.PLACE
    assert seen.getpixel(visible) == (100, 100, 100)
    assert [panel.getpixel(hidden) for panel in restored] == [(0, 0, 255), (0, 255, 0), (0, 0, 0)]
    assert all(panel.getpixel(visible) == (100, 100, 100) for panel in restored)


def test_a_heat_map_is_red_where_the_weight_is():
    picture = draw_explanation(synthetic(words=1))
    bottom = draw_explanation(synthetic(words=0)).height
    assert picture.height == bottom + MAP[1] + canvas.line_height(18) + canvas.line_height(15) + canvas.GAP
    pixels = np.asarray(picture).astype(int)
    redness = pixels[..., 0] - pixels[..., 1]
    redness[: canvas.MARGIN + PANEL[1] + 4 * canvas.line_height(24)] = 0
    rows, columns = np.nonzero(redness > 100)
    assert canvas.MARGIN <= columns.min() < columns.max() < canvas.MARGIN + MAP[0] // 2 + 10
    assert rows.max() - rows.min() < MAP[1] // 2 + 10


def test_the_picture_grows_with_the_rows_of_words():
    heights = [draw_explanation(synthetic(words)).height for words in (1, COLUMNS, COLUMNS + 1)]
    assert heights[0] == heights[1] < heights[2]
    assert draw_explanation(synthetic(2)).width == WIDTH


def test_maps_without_contrast_are_drawn_pale():
    even = WordMap("even", np.full((2, 2), 0.25, np.float32), 0.1)
    explanation = synthetic(0)
    picture = draw_explanation(Explanation(**{**vars(explanation), "words": (even,)}))
    below = np.asarray(picture).astype(int)[canvas.MARGIN + PANEL[1] + 4 * canvas.line_height(24) :]
    assert (below[..., 0] - below[..., 1]).max() < 20


def test_text_is_wrapped_between_words():
    lines = canvas.wrapped("one two three four five six", 100, 24)
    assert " ".join(lines) == "one two three four five six"
    assert len(lines) > 1
    assert all(canvas.font(24).getlength(line) <= 100 for line in lines)
    assert canvas.wrapped("", 100, 24) == [""]
