from dataclasses import replace

import published
import pytest
import tiny
import torch

from tiprctl.config import ObjectiveConfig
from tiprctl.errors import UsageError
from tiprctl.models.encodings import Needs, TextMask, encode
from tiprctl.objectives.composition import Composition


def generator():
    return torch.Generator().manual_seed(0)


def mlm(**options):
    return ObjectiveConfig(name="mlm", options=options)


def compose(*configs):
    torch.manual_seed(0)
    return Composition(tiny.encoder(), configs or (mlm(depth=2),), identities=3)


def encoded(composition, batch):
    return encode(composition.encoder, batch, composition.needs(0.0), generator())


IRRA = published.arrays("irra")
OUTPUTS = published.outputs(IRRA)


@pytest.fixture(scope="module")
def step():
    """A step of the published IRRA, with the words that it masked."""
    drawn = {"tiprctl.models.encodings.mask_tokens": (IRRA["mlm_ids"], IRRA["mlm_labels"])}
    names = {"sdm": "sdm", "id": "id", "mlm": "mlm"}
    step = published.step("irra-published", published.IRRA, IRRA, names, drawn)
    words, labels = step.model.objectives["mlm"], step.enc.token_labels
    everywhere = words.tell(replace(step.enc, hidden=torch.arange(labels.numel()))).view(*labels.shape, -1)
    step.found.update(
        {
            "ret.mlm_acc": words(step.enc, None).figures["accuracy"],
            "mlm_label_flat_index": labels.flatten().nonzero()[:, 0],
            "mlm_logits_at_labels": words.tell(step.enc),
            "mlm_logits_sample0": everywhere[0],
            "mlm_logits_mean": everywhere.mean(2),
            "mlm_logits_std": everywhere.std(2),
        }
    )
    return step


@pytest.mark.parametrize("name", OUTPUTS)
def test_each_value_equals_the_published_code(step, name):
    absolute = 0 if OUTPUTS[name].ndim == 0 else 1e-5
    torch.testing.assert_close(step.found[name].detach(), OUTPUTS[name], rtol=1e-4, atol=absolute)


def test_every_gradient_equals_the_published_code(step):
    published.assert_gradients(step.model, IRRA, published.IRRA)


def test_the_published_method_encodes_the_caption_whole_and_masked(step):
    assert torch.equal(torch.stack(step.texts), torch.stack((IRRA["caption_ids"], IRRA["mlm_ids"])))


def test_needs_the_masked_caption_and_padding_only_where_it_is_looked_at():
    assert compose().needs(0.0) == Needs(masked_text=TextMask(0.15), image_tokens=True)
    needs = compose(mlm(ratio=0.3, attend_padding=True)).needs(0.0)
    assert needs == Needs(masked_text=TextMask(0.3), image_tokens=True, padded_text=True)


def test_words_are_scored_only_where_a_token_is_masked():
    composition = compose()
    enc = encoded(composition, tiny.batch())
    chosen = int((enc.token_labels != 0).sum())
    assert 6 <= chosen < enc.token_labels.numel()
    assert composition.objectives["mlm"].tell(enc).shape == (chosen, 100)


def test_accuracy_is_the_share_of_masked_words_that_are_told():
    composition = compose()
    enc = encoded(composition, tiny.batch())
    head = composition.objectives["mlm"].head
    labels = enc.token_labels[enc.token_labels != 0]
    with torch.no_grad():
        head.fc.weight.zero_()
        head.fc.bias.copy_(torch.arange(100) == labels[0])
    figures = composition.objectives["mlm"](enc, tiny.batch()).figures
    assert figures["accuracy"].item() == pytest.approx((labels == labels[0]).float().mean().item())
    assert 0 < figures["accuracy"] < 1


def test_what_stands_in_the_padding_changes_nothing_unless_it_is_attended():
    def scores(padding, **options):
        composition, batch = compose(mlm(**options)), tiny.batch()
        batch.token_ids[:, 5] = 99
        batch.token_ids[:, 6:] = padding
        batch.token_labels = torch.zeros_like(batch.token_ids)
        batch.token_labels[:, 2] = 7
        return composition.objectives["mlm"].tell(encoded(composition, batch))

    torch.testing.assert_close(scores(0), scores(7))
    assert not torch.allclose(scores(0, attend_padding=True), scores(7, attend_padding=True), atol=1e-5)


def test_the_image_helps():
    composition, batch, other = compose(), tiny.batch(), tiny.batch()
    other.pixels = other.pixels.flip(0)
    first, second = (composition.objectives["mlm"].tell(encoded(composition, each)) for each in (batch, other))
    assert not torch.allclose(first, second, atol=1e-4)


def test_a_batch_without_masked_tokens_costs_nothing_but_keeps_its_graph():
    composition, batch = compose(), tiny.batch()
    batch.token_labels = torch.zeros_like(batch.token_ids)
    losses = composition(batch, 0.0, generator())
    losses.total.backward()
    assert losses.parts == {"mlm": 0, "mlm/accuracy": 0}
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in composition.objectives.parameters())


@pytest.mark.parametrize(
    ("options", "field"), [({"ratio": 0.0}, "ratio"), ({"ratio": 1.5}, "ratio"), ({"depth": 0}, "depth")]
)
def test_options_out_of_range_are_refused(options, field):
    with pytest.raises(UsageError, match=field) as raised:
        compose(mlm(**options))
    assert raised.value.where == "objective mlm"
