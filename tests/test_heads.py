"""What heads ask of the towers, and what they get."""

import pytest
import tiny
import torch

from tiprctl.errors import UsageError
from tiprctl.models.encoder import DualEncoder
from tiprctl.models.tokens import caption_masks


def by_loop(block, x, place, visible):
    """Attention of one token to all, sample by sample and head by head."""
    attn = block.attn
    rows = []
    for sample, at, seen in zip(block.ln_1(x), place, visible):
        query, key, _ = (sample @ attn.in_proj_weight.T + attn.in_proj_bias).chunk(3, dim=1)
        heads = []
        for part in range(attn.heads):
            width = query.shape[1] // attn.heads
            columns = slice(part * width, (part + 1) * width)
            scores = key[:, columns] @ query[at, columns] / width**0.5
            heads.append(torch.where(seen, scores, -torch.inf).softmax(0))
        rows.append(torch.stack(heads).mean(0))
    return torch.stack(rows)


@torch.no_grad()
def test_the_gaze_of_a_token_is_its_attention_in_the_last_block():
    clip, batch = tiny.encoder().clip, tiny.batch()
    entering = {}
    for tower in (clip.visual.transformer, clip.transformer):
        tower.resblocks[-1].register_forward_pre_hook(lambda _, args, tower=tower: entering.update({tower: args[0]}))
    token_ids = batch.token_ids.clone()
    token_ids[1, 5], token_ids[1, 6:] = 99, 0

    seen, read = clip.see(batch.pixels, attention=True), clip.read(token_ids, attention=True)

    torch.testing.assert_close(seen.values, clip.encode_image(batch.pixels))
    torch.testing.assert_close(read.values, clip.encode_text(token_ids))
    image, text = entering[clip.visual.transformer], entering[clip.transformer]
    everything = torch.ones(image.shape[:2], dtype=torch.bool)
    start, ends = torch.zeros(len(image), dtype=torch.long), token_ids.argmax(1)
    torch.testing.assert_close(seen.attention, by_loop(clip.visual.transformer.resblocks[-1], image, start, everything))
    expected = by_loop(clip.transformer.resblocks[-1], text, ends, torch.arange(9) <= ends[:, None])
    torch.testing.assert_close(read.attention, expected)
    assert (read.attention[1, 6:] == 0).all() and read.attention[1, 5] > 0


def test_attention_is_computed_for_those_heads_alone_that_ask_for_it(monkeypatch):
    encoder, batch = tiny.encoder(), tiny.batch()
    assert encoder.see(batch.pixels).attention is None and encoder.read(batch.token_ids).attention is None
    monkeypatch.setattr(type(encoder.head), "needs_attention", True)
    assert encoder.see(batch.pixels).attention.shape == (len(batch.pixels), 9)
    assert encoder.read(batch.token_ids).attention.shape == batch.token_ids.shape


def test_masks_tell_captions_from_padding_and_words_from_marks():
    visible, words = caption_masks(torch.tensor([1, 3, 4]), 5)
    assert visible.int().tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert words.int().tolist() == [[0, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 1, 1, 1, 0]]


def test_unknown_heads_and_options_are_refused():
    clip = tiny.encoder().clip
    with pytest.raises(UsageError, match="globe"):
        DualEncoder(clip, "globe")
    with pytest.raises(UsageError, match="ratio"):
        DualEncoder(clip, "global", {"ratio": 0.5})
