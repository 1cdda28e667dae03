import pytest
import tiny
import torch

from tiprctl.config import ObjectiveConfig
from tiprctl.errors import UsageError
from tiprctl.models.embedder import over_captions
from tiprctl.models.encodings import ImageMask, Needs, TextMask, encode
from tiprctl.models.masking import grey, random_keep
from tiprctl.objectives.base import Objective, ObjectiveOutput
from tiprctl.objectives.composition import Composition
from tiprctl.prompts import Prompts
from tiprctl.shares import Share
from tiprctl.token_masking import mask_tokens

ALL_TOKENS = Needs(image_tokens=True, text_tokens=True)


def test_captions_of_which_there_is_none_have_features_as_wide_as_any():
    token_ids = tiny.batch().token_ids[:0]
    assert over_captions(tiny.encoder().text_features, token_ids).shape == (0, 16)


def generator():
    return torch.Generator().manual_seed(0)


class MaskedView(Objective):
    """A test's objective that reads the masked image."""

    def __init__(self, mask):
        torch.nn.Module.__init__(self)
        self.mask = mask

    def needs(self):
        return Needs(masked_image=self.mask)

    def forward(self, enc, batch):
        return ObjectiveOutput(enc.masked_image_tokens.square().mean(), {"kept": torch.tensor(enc.kept.shape[1])})


def count(passes):
    """How often each tower ran, images first."""
    return tuple(map(len, passes.values()))


def test_each_view_is_encoded_once_however_many_objectives_read_it(monkeypatch):
    composition = Composition(tiny.encoder(), tiny.objectives("sdm", "itc", "id", "triplet"), identities=3)
    passes = tiny.tower_passes(monkeypatch)
    composition(tiny.batch(), 0.0, generator())
    assert count(passes) == (1, 1)


def test_two_objectives_share_one_masked_view(monkeypatch):
    composition = Composition(tiny.encoder(), tiny.objectives("sdm", "id", "triplet"), identities=3)
    passes = tiny.tower_passes(monkeypatch)
    for name in ("id", "triplet"):
        composition.objectives[name] = MaskedView(ImageMask(0.75))
    losses = composition(tiny.batch(), 0.0, generator())
    assert count(passes) == (2, 1)
    assert losses.parts["id/kept"] == 2


def test_similarities_are_computed_once(monkeypatch):
    import tiprctl.models.encodings as module

    calls = []
    original = module.cosine_similarity
    monkeypatch.setattr(module, "cosine_similarity", lambda *args: calls.append(1) or original(*args))
    composition = Composition(tiny.encoder(), tiny.objectives("sdm", "itc", "triplet"), identities=3)
    composition(tiny.batch(), 0.0, generator())
    assert len(calls) == 1


def test_needs_merge_and_conflict_by_name():
    mask = Needs(masked_image=ImageMask(0.7))
    assert Needs().merge(mask) == mask.merge(Needs()) == mask.merge(mask) == mask
    with pytest.raises(UsageError, match=r"ImageMask\(ratio=0.7.*ImageMask\(ratio=0.5"):
        mask.merge(Needs(masked_image=ImageMask(0.5)))


def test_global_features_are_the_class_and_the_end_token():
    encoder, batch = tiny.encoder(), tiny.batch()
    batch.token_ids[0, 4:] = torch.tensor([99, 0, 0, 0, 0])
    encodings = encode(encoder, batch, ALL_TOKENS, generator())
    assert torch.equal(encodings.image, encodings.image_tokens[:, 0])
    assert torch.equal(encodings.text[0], encodings.text_tokens[0, 4])
    assert torch.equal(encodings.text[1], encodings.text_tokens[1, 8])
    torch.testing.assert_close(encoder.image_features(batch.pixels), encodings.image)
    torch.testing.assert_close(encoder.text_features(batch.token_ids), encodings.text)


def test_the_masked_view_is_the_grey_image_at_the_kept_patches():
    encoder, batch = tiny.encoder(), tiny.batch()
    encodings = encode(encoder, batch, Needs(masked_image=ImageMask(0.5)), generator())
    expected = encoder.clip.encode_image(grey(batch.pixels), keep=encodings.kept)
    torch.testing.assert_close(encodings.masked_image_tokens, expected)
    assert encodings.kept.shape == (6, 4)


def test_kept_patches_are_drawn_per_image_evenly_and_in_order():
    kept = random_keep(Share.whole(2000), 8, 0.75, generator=generator())
    assert kept.shape == (2000, 2)
    assert (kept[:, 0] < kept[:, 1]).all()
    counts = kept.flatten().bincount(minlength=8)
    assert counts.min() > 420
    assert counts.max() < 580


def test_grey_weighs_the_channels():
    image = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1)
    assert grey(image).flatten().tolist() == pytest.approx([0.2989 + 2 * 0.5870 + 4 * 0.1140] * 3)


def test_masks_that_clash_are_refused_when_the_method_is_put_together(monkeypatch):
    from tiprctl.objectives import triplet
    from tiprctl.objectives.identity import IdentityClassification

    monkeypatch.setattr(IdentityClassification, "needs", lambda self: Needs(masked_image=ImageMask(0.7)))
    monkeypatch.setattr(triplet.CrossModalTriplet, "needs", lambda self: Needs(masked_image=ImageMask(0.5)))
    late = ObjectiveConfig(name="triplet", start=0.5)
    with pytest.raises(UsageError, match="different views"):
        Composition(tiny.encoder(), (ObjectiveConfig(name="id"), late), identities=3)
    apart = ObjectiveConfig(name="id", stop=0.5)
    assert Composition(tiny.encoder(), (apart, late), identities=3).needs(0.6).masked_image.ratio == 0.5


def test_the_masked_caption_is_encoded_from_its_own_draw():
    encoder, batch = tiny.encoder(), tiny.batch()
    encodings = encode(encoder, batch, Needs(masked_text=TextMask(0.5)), generator())
    ids, labels = mask_tokens(batch.token_ids, 0.5, vocab_size=100, generator=generator())
    assert torch.equal(encodings.token_labels, labels)
    places = [row * 9 + place for row in range(6) for place in range(9) if labels[row, place]]
    assert encodings.hidden.tolist() == places
    torch.testing.assert_close(encodings.masked_captions.values, encoder.clip.encode_text(ids))
    # Of the caption itself nobody reads more than the whole.
    assert encodings.captions.values.shape == (6, 1, 16)


def test_captions_that_came_masked_are_their_own_masked_view(monkeypatch):
    encoder, batch = tiny.encoder(), tiny.batch()
    passes = tiny.tower_passes(monkeypatch)
    batch.token_ids, batch.token_labels = mask_tokens(batch.token_ids, 0.5, vocab_size=100, generator=generator())
    encodings = encode(encoder, batch, Needs(masked_text=TextMask(0.5)), generator())
    assert encodings.masked_captions is encodings.captions
    assert torch.equal(encodings.token_labels, batch.token_labels)
    assert count(passes) == (1, 1)


def test_padded_captions_reach_the_whole_context_with_equal_features():
    encoder, batch = tiny.encoder(), tiny.batch()
    short, long = (encode(encoder, batch, Needs(padded_text=padded), generator()) for padded in (False, True))
    assert long.token_ids.shape[1] == 77
    torch.testing.assert_close(long.text, short.text)


def prompted(size=3):
    """A batch whose captions have two prompts and the same ones, one, and two of which one is the first's second."""
    batch = tiny.batch(size)
    token_ids = torch.tensor([[98, 0, 6, 99, 0], [98, 7, 8, 9, 99], [98, 4, 99, 0, 0]])
    index = torch.tensor([[0, 1], [2, 2], [1, 0]])[:size]
    batch.prompts = Prompts(token_ids, index, torch.tensor([[True, True], [True, False], [True, True]])[:size])
    return batch


@pytest.mark.parametrize("size", [1, 3])
def test_distinct_prompts_are_encoded_once_and_given_to_each_caption(monkeypatch, size):
    encoder, batch = tiny.encoder(), prompted(size)
    passes = tiny.tower_passes(monkeypatch)
    encodings = encode(encoder, batch, Needs(prompts=True), generator())
    assert count(passes) == (1, 2)
    assert passes["encode_text"][1] is batch.prompts.token_ids
    assert encodings.prompts.values.shape == (size, 2, 16)
    for caption, row in enumerate(batch.prompts.index.tolist()):
        for slot, number in enumerate(row):
            ids = batch.prompts.token_ids[number]
            alone = encoder.clip.encode_text(ids[None, : ids.tolist().index(99) + 1])[0, -1]
            torch.testing.assert_close(encodings.prompts.values[caption, slot], alone)
    assert torch.equal(encodings.prompts.found, batch.prompts.found)
    assert torch.equal(encodings.prompts.index, batch.prompts.index)


def test_prompts_teach_the_text_tower():
    encoder = tiny.encoder()
    encode(encoder, prompted(), Needs(prompts=True), generator()).prompts.values.square().sum().backward()
    gradient = encoder.clip.token_embedding.weight.grad
    assert set(gradient.abs().sum(dim=1).nonzero().flatten().tolist()) == {0, 4, 6, 7, 8, 9, 98, 99}


def test_prompts_that_nobody_reads_are_not_encoded(monkeypatch):
    encoder, batch = tiny.encoder(), prompted()
    passes = tiny.tower_passes(monkeypatch)
    encodings = encode(encoder, batch, Needs(), generator())
    assert count(passes) == (1, 1)
    assert encodings.prompts is None


def test_prompts_change_no_other_view():
    encoder, batch = tiny.encoder(), prompted()
    needs = Needs(masked_image=ImageMask(0.5), masked_text=TextMask(0.5)).merge(ALL_TOKENS)
    plain, more = (encode(encoder, batch, each, generator()) for each in (needs, needs.merge(Needs(prompts=True))))
    for view in ("token_ids", "text_tokens", "image_tokens", "kept", "hidden", "token_labels"):
        assert torch.equal(getattr(plain, view), getattr(more, view))
    assert torch.equal(plain.masked_captions.values, more.masked_captions.values)


def test_whoever_needs_prompts_gets_them_for_all():
    assert Needs().merge(Needs(prompts=True)) == Needs(prompts=True).merge(Needs()) == Needs(prompts=True)
    assert not Needs().merge(Needs()).prompts


def test_a_batch_without_the_prompts_that_are_needed_says_how_to_get_them():
    batch = tiny.batch()
    batch.prompts = None
    with pytest.raises(UsageError, match=r"without\ncaptions\.phrases\n.*--set captions\.phrases=6"):
        encode(tiny.encoder(), batch, Needs(prompts=True), generator())


def test_pairs_are_made_once_and_where_they_are_read_alone(monkeypatch):
    encoder, batch = tiny.encoder(head="division"), prompted()
    original, calls = encoder.head.relate, []
    monkeypatch.setattr(encoder.head, "relate", lambda *args: calls.append(1) or original(*args))
    encodings = encode(encoder, batch, Needs(pairs=True), generator())
    assert not calls
    whole, patches = encodings.image_tokens[:, 0], encodings.image_tokens[:, 1:]
    expected = original(whole, patches, encodings.text, encodings.prompts.values, batch.prompts.found)
    torch.testing.assert_close(encodings.related.scores, expected.scores)
    assert encodings.related.scores.shape == (3, 3)
    assert len(calls) == 1


def test_tokens_that_no_objective_asked_for_are_left_out_with_equal_features():
    encoder, batch = tiny.encoder(), tiny.batch()
    alone, all_tokens = (encode(encoder, batch, needs, generator()) for needs in (Needs(), ALL_TOKENS))
    assert alone.images.values.shape == alone.captions.values.shape == (6, 1, 16)
    torch.testing.assert_close(alone.similarity, all_tokens.similarity)


@pytest.mark.parametrize("view", ["image_tokens", "text_tokens"])
def test_reading_tokens_that_were_left_out_says_how_to_get_them(view):
    encodings = encode(tiny.encoder(), tiny.batch(), Needs(), generator())
    with pytest.raises(UsageError, match=rf"made alone\n{view}\n.*Needs\({view}=True\)"):
        getattr(encodings, view)


def test_a_head_that_reads_tokens_gets_them_unasked():
    encodings = encode(tiny.encoder(head="parts"), tiny.batch(), Needs(), generator())
    assert encodings.image_tokens.shape == (6, 9, 16)
    assert encodings.text_tokens.shape == (6, 9, 16)
