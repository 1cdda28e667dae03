import pytest
import torch

from tiprctl.token_masking import mask_token, mask_tokens

VOCAB = 100
MASK, START, END = 97, 98, 99


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def captions(rows=400, words=30):
    token_ids = torch.randint(1, MASK, (rows, words + 4), generator=generator(1))
    token_ids[:, 0], token_ids[:, words + 1], token_ids[:, words + 2 :] = START, END, 0
    return token_ids


def masked(token_ids, probability):
    return mask_tokens(token_ids, probability, vocab_size=VOCAB, generator=generator())


def test_the_mask_of_clip_stands_before_start_and_end():
    assert mask_token(49408) == 49405


def test_labels_tell_what_was_hidden_and_nothing_else_changes():
    token_ids = captions()
    before = token_ids.clone()
    ids, labels = masked(token_ids, 0.15)
    assert torch.equal(token_ids, before)
    chosen = labels > 0
    assert torch.equal(labels[chosen], token_ids[chosen])
    assert torch.equal(ids[~chosen], token_ids[~chosen])
    special = (token_ids == 0) | (token_ids >= MASK)
    assert not (chosen & special).any()


def test_shares_are_those_of_bert():
    token_ids = captions(rows=2000)
    ids, labels = masked(token_ids, 0.15)
    chosen = labels > 0
    words = (token_ids > 0) & (token_ids < MASK)
    assert chosen.sum() / words.sum() == pytest.approx(0.15, abs=0.005)
    assert (ids[chosen] == MASK).float().mean() == pytest.approx(0.8, abs=0.02)
    # One random token in 96 is the very one that it replaces.
    assert (ids[chosen] == token_ids[chosen]).float().mean() == pytest.approx(0.1 + 0.1 / 96, abs=0.015)
    assert ids[chosen].max() == MASK
    assert ids[chosen].min() >= 1


def test_each_token_can_have_a_probability_of_its_own():
    token_ids = captions()
    probability = torch.zeros(token_ids.shape)
    probability[:, 3:6] = 1.0
    _, labels = masked(token_ids, probability)
    assert (labels[:, 3:6] > 0).all()
    assert (labels > 0).sum() == 3 * len(token_ids)


def test_at_least_the_first_token_is_masked_where_there_is_one():
    token_ids = torch.tensor([[START, 5, 6, END], [START, END, 0, 0]])
    ids, labels = masked(token_ids, 0.0)
    assert ids.tolist() == [[START, MASK, 6, END], [START, END, 0, 0]]
    assert labels.tolist() == [[0, 5, 0, 0], [0, 0, 0, 0]]


def test_the_same_generator_masks_the_same():
    token_ids = captions()
    first, second = masked(token_ids, 0.3), masked(token_ids, 0.3)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
