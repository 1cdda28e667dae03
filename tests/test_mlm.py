import published
import pytest
import tiny
import torch

from tiprctl.config import ObjectiveConfig
from tiprctl.errors import UsageError
from tiprctl.losses import identity_loss, sdm_loss
from tiprctl.models.encodings import Encodings, Needs, TextMask, encode
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


@pytest.fixture(scope="module")
def irra():
    return published.arrays("irra")


@pytest.fixture(scope="module")
def model(irra):
    """IRRA: its weights, with one backward pass of its loss done, and what came of it."""
    composition = published.composition(
        published.IRRA, irra, *tiny.objectives("sdm", "id"), mlm(depth=2, attend_padding=True)
    )
    clip, objectives = composition.encoder.clip, composition.objectives
    image_tokens, text_tokens = clip.encode_image(irra["images"]), clip.encode_text(irra["caption_ids"])
    enc = Encodings(
        token_ids=irra["caption_ids"],
        image_tokens=image_tokens,
        text_tokens=text_tokens,
        image=image_tokens[:, 0],
        text=text_tokens[torch.arange(4), irra["caption_ids"].argmax(1)],
        masked_text_tokens=clip.encode_text(irra["mlm_ids"]),
        token_labels=irra["mlm_labels"],
    )
    classify, output = objectives["id"].classifier, objectives["mlm"](enc, None)
    losses = {
        "sdm": sdm_loss(enc.similarity, irra["pids"], logit_scale=50),
        "id": identity_loss(classify(enc.image), classify(enc.text), irra["pids"]),
        "mlm": output.loss,
    }
    sum(losses.values()).backward()
    with torch.no_grad():
        logits = objectives["mlm"].tell(enc)
    return composition, logits, {name: loss.detach() for name, loss in losses.items()}, output.figures


@pytest.mark.parametrize("name", ["sdm", "id", "mlm"])
def test_each_loss_equals_the_published_code(irra, model, name):
    torch.testing.assert_close(model[2][name], irra[f"ret.{name}_loss"], rtol=1e-4, atol=0)


def test_the_scores_and_the_accuracy_equal_the_published_code(irra, model):
    assert torch.equal(irra["mlm_labels"].flatten().nonzero()[:, 0], irra["mlm_label_flat_index"])
    torch.testing.assert_close(model[1], irra["mlm_logits_at_labels"], rtol=1e-4, atol=1e-5)
    assert model[3]["accuracy"] == irra["ret.mlm_acc"]


def test_every_gradient_equals_the_published_code(irra, model):
    published.assert_gradients(model[0], irra, published.IRRA)


def test_needs_the_masked_caption_and_padding_only_where_it_is_looked_at():
    assert compose().needs(0.0) == Needs(masked_text=TextMask(0.15))
    needs = compose(mlm(ratio=0.3, attend_padding=True)).needs(0.0)
    assert needs == Needs(masked_text=TextMask(0.3), padded_text=True)


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


def test_restoration_and_words_train_together():
    composition = compose(*tiny.objectives("sdm", "id", "tir", "mlm"))
    losses = composition(tiny.batch(), 0.0, generator())
    losses.total.backward()
    assert losses.parts.keys() == {"sdm", "id", "tir", "mlm", "mlm/accuracy"}
    assert losses.total.isfinite()


@pytest.mark.parametrize(
    ("options", "field"), [({"ratio": 0.0}, "ratio"), ({"ratio": 1.5}, "ratio"), ({"depth": 0}, "depth")]
)
def test_options_out_of_range_are_refused(options, field):
    with pytest.raises(UsageError, match=field) as raised:
        compose(mlm(**options))
    assert raised.value.where == "objective mlm"
