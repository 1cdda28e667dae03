"""A batch that is taken in parts has the losses and gradients of the whole, in the memory of a part."""

import many
import pytest
import tiny
import torch
from many import Case
from torch import Generator

from tiprctl.errors import UsageError
from tiprctl.execution import Execution
from tiprctl.gradients import AtOnce, InParts, Passes
from tiprctl.models.encoder import DualEncoder
from tiprctl.objectives import OBJECTIVES
from tiprctl.objectives.composition import Composition
from tiprctl.recipes import RECIPES
from tiprctl.training import Trainer

CPU = torch.device("cpu")
TOGETHER = {
    **{name: tiny.objectives(name) for name in OBJECTIVES},
    **{f"recipe {name}": recipe.objectives for name, recipe in RECIPES.items()},
}


def generators():
    return Generator().manual_seed(0), Generator().manual_seed(1)


def compose(*names, encoder=None):
    torch.manual_seed(0)
    return Composition(encoder or tiny.encoder(), tiny.objectives(*names), identities=3)


def gradients(composition):
    return {name: parameter.grad for name, parameter in composition.named_parameters()}


@pytest.mark.parametrize("parts", [2, 5])
@pytest.mark.parametrize("name", TOGETHER)
def test_a_batch_in_parts_has_the_losses_and_gradients_of_the_whole(name, parts):
    whole, divided = (many.take_step(Case(TOGETHER[name], size=5, parts=each)) for each in (1, parts))
    many.assert_same(whole, divided)


def test_captions_that_came_masked_stay_so():
    whole, divided = (many.take_step(Case(tiny.objectives("sdm", "mlm"), parts=each, masked=True)) for each in (1, 4))
    many.assert_same(whole, divided)


def test_a_scaled_loss_scales_all_gradients():
    scaled, plain = compose("sdm", "tir"), compose("sdm", "tir")
    InParts(scaled, Passes(device=CPU, scale=lambda loss: 1024 * loss), parts=2, rows=6)(
        tiny.batch(), 0.0, *generators()
    )
    InParts(plain, Passes(device=CPU), parts=2, rows=6)(tiny.batch(), 0.0, *generators())
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(gradients(scaled)[name], 1024 * gradient, rtol=1e-5, atol=1e-2)


def test_mixed_precision_keeps_the_gradients_of_the_towers():
    whole, divided = compose("sdm", "id", "mlm"), compose("sdm", "id", "mlm")
    AtOnce(whole, Passes(device=CPU, dtype=torch.bfloat16))(tiny.batch(), 0.0, *generators())
    InParts(divided, Passes(device=CPU, dtype=torch.bfloat16), parts=2, rows=6)(tiny.batch(), 0.0, *generators())
    for name, gradient in gradients(whole).items():
        assert gradient.dtype == torch.float32
        difference = (gradients(divided)[name] - gradient).norm() / gradient.norm().clamp(min=1e-3)
        assert difference < 0.05, name


def test_plain_views_are_encoded_twice_and_masked_ones_once_a_part_at_a_time(monkeypatch):
    composition, passes = compose("sdm", "tir", "mlm"), tiny.tower_passes(monkeypatch)
    InParts(composition, Passes(device=CPU), parts=2, rows=6)(tiny.batch(), 0.0, *generators())
    sizes = {name: [len(given) for given in inputs] for name, inputs in passes.items()}
    assert sizes == {"encode_image": [3] * 6, "encode_text": [3] * 6}


def test_what_needs_no_other_rows_is_encoded_once(monkeypatch):
    composition, passes = compose("tir"), tiny.tower_passes(monkeypatch)
    InParts(composition, Passes(device=CPU), parts=3, rows=6)(tiny.batch(), 0.0, *generators())
    assert [len(given) for given in passes["encode_text"]] == [2, 2, 2]


class Dropping(DualEncoder):
    """Drops half of each caption's tokens in training, and keeps what came out."""

    def __init__(self, clip):
        super().__init__(clip)
        self.read_so_far = []

    def read(self, token_ids, **asked):
        tokens = super().read(token_ids)
        values = torch.nn.functional.dropout(tokens.values, training=self.training)
        self.read_so_far.append(values.detach())
        return tokens.__class__(values, tokens.place, tokens.visible, words=tokens.words)


def test_both_passes_draw_the_same_dropout_and_parts_and_steps_differ():
    encoder = Dropping(tiny.encoder().clip)
    batch = tiny.batch()
    batch.token_ids[3:] = batch.token_ids[:3]
    divided = InParts(compose("sdm", "mlm", encoder=encoder), Passes(device=CPU), parts=2, rows=6)
    before = torch.get_rng_state()
    divided(batch, 0.0, *generators())
    first, second, first_again, second_again = encoder.read_so_far
    assert torch.equal(first, first_again) and torch.equal(second, second_again)
    assert not torch.equal(first == 0, second == 0)
    divided(batch, 0.0, Generator().manual_seed(0), Generator().manual_seed(2))
    assert not torch.equal(encoder.read_so_far[4] == 0, first == 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_gradients_add_to_what_is_there():
    composition = compose("sdm", "tir")
    step = InParts(composition, Passes(device=CPU), parts=2, rows=6)
    step(tiny.batch(), 0.0, *generators())
    once = {name: gradient.clone() for name, gradient in gradients(composition).items()}
    step(tiny.batch(), 0.0, *generators())
    for name, gradient in gradients(composition).items():
        torch.testing.assert_close(gradient, 2 * once[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("parts", [0, 7])
def test_more_parts_than_rows_are_refused_with_what_to_choose(parts):
    with pytest.raises(UsageError) as raised:
        InParts(compose("sdm"), Passes(device=CPU), parts=parts, rows=6)
    message = str(raised.value)
    assert f"6 rows of a batch cannot be taken in {parts} parts" in message
    assert "--accumulate" in message and "from 1 to 6" in message


def trainer(manifest, folder, parts, **changes):
    config = tiny.recipe(epochs=1, objectives=[{"name": name} for name in ("sdm", "id", "tir")], **changes)
    return Trainer(config, manifest, folder, device=CPU, execution=Execution(accumulate=parts))


def test_a_training_in_parts_learns_the_same(shared_manifest, tmp_path):
    whole, divided = (trainer(shared_manifest, tmp_path / f"{parts}", parts) for parts in (1, 2))
    for one, other in zip(whole.take_steps(), divided.take_steps(), strict=True):
        torch.testing.assert_close(dict(other.losses), dict(one.losses), rtol=1e-3, atol=1e-4)


def test_batches_with_fewer_rows_than_parts_are_taken_in_as_many_as_they_have(shared_manifest, tmp_path):
    pairs = {"sampling.sampler": "pairs"}
    whole, divided = (trainer(shared_manifest, tmp_path / f"{parts}", parts, **pairs) for parts in (1, 4))
    assert {len(batch) for batch in divided.batches._indices(0)} & {2, 3}
    for one, other in zip(whole.take_steps(), divided.take_steps(), strict=True):
        torch.testing.assert_close(dict(other.losses), dict(one.losses), rtol=1e-3, atol=1e-4)


def test_a_training_with_too_many_parts_does_not_begin(shared_manifest, tmp_path):
    with pytest.raises(UsageError, match="4 rows of a batch cannot be taken in 5 parts"):
        trainer(shared_manifest, tmp_path, 5)
