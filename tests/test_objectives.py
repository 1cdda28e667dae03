from dataclasses import replace

import pytest
import tiny
import torch

from tiprctl.config import ObjectiveConfig, frozen
from tiprctl.errors import UsageError
from tiprctl.losses import cosine_similarity, identity_loss, itc_loss, sdm_loss, triplet_loss
from tiprctl.models.encodings import Needs
from tiprctl.models.masking import grey
from tiprctl.objectives import OBJECTIVES, find_objective
from tiprctl.objectives.base import Objective, ObjectiveOutput, Role
from tiprctl.objectives.composition import Composition, loss_names


def generator():
    return torch.Generator().manual_seed(0)


def compose(*configs):
    torch.manual_seed(0)
    heads = {find_objective(config.name).needs_head for config in configs} - {None}
    return Composition(tiny.encoder(head=heads.pop() if heads else "global"), configs, identities=3)


EACH = pytest.mark.parametrize("name", OBJECTIVES)


@EACH
def test_the_table_names_each_objective_as_it_names_itself(name):
    assert find_objective(name).name == name


def test_losses_are_the_pure_functions_on_the_shared_features():
    batch = tiny.batch()
    composition = compose(*tiny.objectives("sdm", "itc", "id", "triplet"))
    parts = composition(batch, 0.0, generator()).parts
    image, text = composition.encoder.image_features(batch.pixels), composition.encoder.text_features(batch.token_ids)
    similarity, classify = cosine_similarity(image, text), composition.objectives["id"].classifier
    torch.testing.assert_close(parts["sdm"], sdm_loss(similarity, batch.pids, logit_scale=50).detach())
    torch.testing.assert_close(parts["itc"], itc_loss(similarity, logit_scale=1 / 0.07).detach())
    torch.testing.assert_close(parts["triplet"], triplet_loss(similarity, batch.pids, margin=0.05).detach())
    torch.testing.assert_close(parts["id"], identity_loss(classify(image), classify(text), batch.pids).detach())


def test_the_total_weighs_the_parts():
    composition = compose(ObjectiveConfig(name="sdm", weight=2), ObjectiveConfig(name="triplet", weight=10))
    losses = composition(tiny.batch(), 0.0, generator())
    torch.testing.assert_close(losses.total.detach(), 2 * losses.parts["sdm"] + 10 * losses.parts["triplet"])


def test_similarities_that_nobody_reads_are_not_computed(monkeypatch):
    monkeypatch.delattr("tiprctl.models.encodings.cosine_similarity")
    compose(*tiny.objectives("id"))(tiny.batch(), 0.0, generator()).total.backward()
    with pytest.raises(NameError):
        compose(*tiny.objectives("sdm"))(tiny.batch(), 0.0, generator())


def test_objectives_take_part_in_their_share_of_the_training():
    composition = compose(ObjectiveConfig(name="itc", stop=0.4), ObjectiveConfig(name="sdm", start=0.4))
    names = [set(composition(tiny.batch(), at, generator()).parts) for at in (0.0, 0.39, 0.4, 0.99)]
    assert names == [{"itc", "itc/logit_scale"}] * 2 + [{"sdm"}] * 2


@EACH
def test_gradients_reach_both_towers_and_all_of_its_own_parameters(name):
    composition = compose(*tiny.objectives(name))
    composition(tiny.batch(), 0.0, generator()).total.backward()
    unmoved = [n for n, p in composition.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert [name for name in unmoved if not name.startswith("encoder.head.")] == []


@EACH
def test_steps_bring_the_loss_down_and_leave_the_batch_alone(name):
    composition, batch, before = compose(*tiny.objectives(name)), tiny.batch(), tiny.batch()
    optimizer = torch.optim.Adam(composition.parameters(), lr=1e-4)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = composition(batch, 0.0, generator()).total
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]
    for field in ("pixels", "token_ids", "pids"):
        assert torch.equal(getattr(batch, field), getattr(before, field))


@EACH
def test_half_precision_computes_the_loss_in_full(name):
    composition, batch = compose(*tiny.objectives(name)), tiny.batch()
    full = composition(batch, 0.0, generator()).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = composition(batch, 0.0, generator()).total
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0.02, atol=0)


def test_restoration_and_words_together_encode_each_image_and_caption_once_whole_and_once_masked(monkeypatch):
    composition, batch = compose(*tiny.objectives("sdm", "id", "triplet", "tir", "mlm")), tiny.batch()
    passes = tiny.tower_passes(monkeypatch)
    losses = composition(batch, 0.0, generator())
    pixels, masked_pixels = passes["encode_image"]
    token_ids, masked_ids = passes["encode_text"]
    assert torch.equal(pixels, batch.pixels) and torch.equal(masked_pixels, grey(batch.pixels))
    assert torch.equal(token_ids, batch.token_ids) and not torch.equal(masked_ids, batch.token_ids)
    assert losses.parts.keys() == {"sdm", "id", "triplet", "tir", "mlm", "mlm/accuracy"}


def test_the_contrast_temperature_is_learned_and_bounded():
    composition = compose(*tiny.objectives("itc"))
    with torch.no_grad():
        composition.objectives["itc"].log_scale.fill_(10.0)
    assert composition(tiny.batch(), 0.0, generator()).parts["itc/logit_scale"] == 100


def test_owners_declare_the_roles_of_all_parameters_exactly_once():
    composition = compose(*tiny.objectives("sdm", "itc", "id"))
    declared = [(role, id(p)) for role, module in composition.roles() for p in module.parameters()]
    assert sorted(i for _, i in declared) == sorted(id(p) for p in composition.parameters())
    roles = dict((i, role) for role, i in declared)
    assert roles[id(composition.objectives["id"].classifier.bias)] is Role.CLASSIFIER
    assert roles[id(composition.objectives["itc"].log_scale)] is Role.FAST
    assert roles[id(composition.encoder.clip.text_projection)] is Role.BASE


def test_options_are_validated_with_the_objectives_name():
    with pytest.raises(UsageError) as raised:
        compose(ObjectiveConfig(name="triplet", options={"margin": -1, "sharpness": 3}))
    assert "triplet" in str(raised.value)
    assert "margin" in str(raised.value)
    assert "sharpness" in str(raised.value)


@pytest.mark.parametrize("pids", [[0, 0, 0, 0], [0, 1, 2, 0]])
def test_a_batch_of_one_identity_or_of_mixed_ones_gives_finite_losses(pids):
    batch = tiny.batch(size=4)
    batch.pids = torch.tensor(pids)
    losses = compose(*tiny.objectives("sdm", "itc", "id", "triplet"))(batch, 0.0, generator())
    assert torch.isfinite(losses.total)


@frozen
class NoConfig:
    """Nothing can be set."""


class Sharing(Objective):
    """The mean of the similarities; that of several counts once for each."""

    Config, group = NoConfig, "mean"

    def forward(self, enc, batch):
        return ObjectiveOutput(enc.similarity.mean())

    @classmethod
    def together(cls, objectives, weights):
        if len(set(weights)) > 1:
            raise UsageError(f"{len(objectives)} weights")
        return lambda enc, batch: ObjectiveOutput(len(objectives) * enc.similarity.mean())


def test_objectives_of_a_group_share_the_loss_that_they_define(monkeypatch):
    for name in ("first", "second"):
        monkeypatch.setitem(OBJECTIVES, name, type(name, (Sharing,), {"name": name}))
    first, second = (ObjectiveConfig(name=name, weight=3) for name in ("first", "second"))
    configs = [replace(first, start=0.5), ObjectiveConfig(name="sdm", weight=0), second]
    assert loss_names(configs) == ["sdm", "second", "first+second"]
    composition = compose(*configs)
    alone, both = (composition(tiny.batch(), progress, generator()) for progress in (0.0, 0.5))
    assert (alone.parts.keys(), both.parts.keys()) == ({"sdm", "second"}, {"sdm", "first+second"})
    torch.testing.assert_close(both.parts["first+second"], 2 * alone.parts["second"])
    torch.testing.assert_close(both.total, 2 * alone.total)
    torch.testing.assert_close(alone.total.detach(), 3 * alone.parts["second"])
    with pytest.raises(UsageError, match="2 weights"):
        compose(first, replace(second, weight=2))


def test_objectives_that_share_a_loss_agree_on_whether_it_goes_by_row(monkeypatch):
    for name, by_row in (("first", False), ("second", True)):
        monkeypatch.setitem(OBJECTIVES, name, type(name, (Sharing,), {"name": name, "by_row": by_row}))
    with pytest.raises(UsageError, match=r"first\+second share one loss, and only some of them are `by_row`"):
        compose(*tiny.objectives("first", "second"))


class Pairing(Objective):
    """Needs the pairs of a head, whichever head it is."""

    name, Config = "pairing", NoConfig

    def needs(self):
        return Needs(pairs=True)


def test_pairs_of_a_head_that_looks_at_none_are_refused_before_the_first_step(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, Pairing.name, Pairing)
    late = [ObjectiveConfig(name="sdm"), ObjectiveConfig(name=Pairing.name, start=0.5)]
    with pytest.raises(UsageError, match=r"pairing reads pairs .* the head global looks at none\nmodel\.head"):
        compose(*late)
    Composition(tiny.encoder(head="division"), late, identities=3)


@pytest.mark.parametrize(("start", "stop"), [(0.2, 1.0), (0.0, 0.7)])
def test_a_stretch_without_objective_is_refused(start, stop):
    with pytest.raises(UsageError, match=r"No objective is active after (0|70)%"):
        compose(ObjectiveConfig(name="sdm", start=start, stop=stop))
