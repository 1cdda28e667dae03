"""What a loss reaches, and the batch that processes gather."""

import tiny
import torch
from torch import nn

from tiprctl.gradients import reached
from tiprctl.models.encodings import Masks
from tiprctl.models.rows import Gathered
from tiprctl.shares import Share


def test_a_loss_reaches_what_it_uses_and_what_learns():
    used, frozen, unused = (nn.Parameter(torch.ones(2)) for _ in range(3))
    frozen.requires_grad_(False)
    assert reached((used * frozen).sum() + used.square().sum()) == {used}
    assert unused not in reached(used.sum())


def test_a_loss_that_nothing_learns_from_reaches_nothing():
    assert reached(torch.ones(2).sum()) == set()


def test_a_gathered_batch_is_the_whole_of_it():
    batch = tiny.batch(3)
    batch.share = Share(0, 3, 5)
    assert Gathered(batch, 5).share == Share.whole(5)


def test_the_hidden_places_are_looked_for_once():
    masks = Masks(token_labels=torch.tensor([[0, 3, 0], [5, 0, 0]]))
    assert masks.hidden.tolist() == [1, 3]
    assert masks.hidden is masks.hidden
