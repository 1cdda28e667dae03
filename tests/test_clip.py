import json
from dataclasses import replace

import published
import pytest
import torch
from torch.nn import functional as F

from tiprctl.errors import UsageError
from tiprctl.models.clip import SIZES, Clip, ClipConfig, Transformer

SMALL = ClipConfig(
    embed_dim=48,
    image_size=(40, 24),
    patch_size=8,
    stride=8,
    vision_width=64,
    vision_layers=2,
    vision_heads=2,
    text_width=32,
    text_layers=2,
    text_heads=4,
    context_length=16,
    vocab_size=100,
)


def build(config: ClipConfig = SMALL, seed: int = 0) -> Clip:
    clip = Clip(config)
    clip.initialise(torch.Generator().manual_seed(seed))
    return clip.eval()


def random_inputs(config: ClipConfig = SMALL, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(batch, 3, *config.image_size, generator=generator)
    token_ids = torch.randint(config.vocab_size, (batch, config.context_length), generator=generator)
    return pixels, token_ids


@torch.no_grad()
def test_equals_openais_model_on_a_square_image():
    expected = published.arrays("clip_tiny_square")
    clip = published.clip((224, 224), 16)
    image = clip.encode_image(expected["image"])[:, 0]
    ends = expected["tokens"].argmax(1)
    text = clip.encode_text(expected["tokens"])[torch.arange(len(ends)), ends]
    logits = published.arrays("clip_tiny_state")["logit_scale"].exp() * F.normalize(image) @ F.normalize(text).T
    torch.testing.assert_close(image, expected["encode_image"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(text, expected["encode_text"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, expected["logits_per_image"], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_equals_irras_model_on_every_token_of_a_person_crop():
    expected = published.arrays("clip_tiny_384x128")
    clip = published.clip((384, 128), 16)
    positions = clip.visual.positional_embedding
    torch.testing.assert_close(positions, expected["posembed_out_193"], rtol=0, atol=1e-7)
    torch.testing.assert_close(clip.encode_image(expected["image"]), expected["image_tokens"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(clip.encode_text(expected["tokens"]), expected["text_tokens"], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_equals_irras_model_with_overlapping_patches():
    expected = published.arrays("clip_tiny_384x128")
    clip = published.clip((384, 128), 12)
    tokens = clip.encode_image(expected["image"])
    first_positions = expected["stride12_posembed_rows_first20"]
    assert clip.config.grid == (31, 10)
    assert tokens.shape[1] == expected["stride12_num_tokens"]
    torch.testing.assert_close(clip.visual.positional_embedding[:20], first_positions, rtol=0, atol=1e-7)
    torch.testing.assert_close(tokens[:, 0], expected["stride12_image_global"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens.mean(1), expected["stride12_image_tokens_mean"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("quick_gelu", [True, False], ids=["quick", "exact"])
@torch.no_grad()
def test_equals_open_clip_with_the_same_random_weights(quick_gelu):
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    config = replace(SMALL, quick_gelu=quick_gelu)
    clip = build(config)
    theirs = CLIP(
        config.embed_dim,
        CLIPVisionCfg(layers=2, width=64, head_width=32, patch_size=8, image_size=(40, 24)),
        CLIPTextCfg(context_length=16, vocab_size=100, width=32, heads=4, layers=2),
        quick_gelu=quick_gelu,
    ).eval()
    generator = torch.Generator().manual_seed(2)
    for parameter in clip.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    theirs.load_state_dict(clip.state_dict() | {"logit_scale": theirs.logit_scale})
    pixels, token_ids = random_inputs(config)
    ends = token_ids.argmax(1)
    text = clip.encode_text(token_ids)[torch.arange(3), ends]
    torch.testing.assert_close(clip.encode_image(pixels)[:, 0], theirs.encode_image(pixels), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(text, theirs.encode_text(token_ids), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_quick_and_exact_gelu_differ():
    pixels, _ = random_inputs()
    assert not torch.allclose(
        build().encode_image(pixels), build(replace(SMALL, quick_gelu=False)).encode_image(pixels)
    )


@torch.no_grad()
def test_a_masked_view_equals_the_blocks_run_on_the_kept_patches_one_by_one():
    clip, (pixels, _) = build(), random_inputs()
    keep = torch.tensor([[3, 0, 14], [7, 8, 9], [14, 13, 1]])
    tokens = clip.encode_image(pixels, keep=keep)
    visual = clip.visual
    for image, kept, found in zip(pixels, keep, tokens):
        sequence = [visual.class_embedding + visual.positional_embedding[0]]
        for index in kept.tolist():
            row, column = divmod(index, 3)
            patch = image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            embedded = (visual.conv1.weight * patch).sum((1, 2, 3))
            sequence.append(embedded + visual.positional_embedding[1 + index])
        hidden = visual.transformer(visual.ln_pre(torch.stack(sequence)[None]))
        torch.testing.assert_close(found, (visual.ln_post(hidden) @ visual.proj)[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_keeping_all_patches_is_the_full_view():
    clip, (pixels, _) = build(), random_inputs()
    everything = torch.arange(15).expand(3, -1)
    torch.testing.assert_close(clip.encode_image(pixels, keep=everything), clip.encode_image(pixels))


@torch.no_grad()
def test_text_features_do_not_depend_on_what_follows():
    clip, (_, token_ids) = build(), random_inputs()
    full = clip.encode_text(token_ids)
    torch.testing.assert_close(clip.encode_text(token_ids[:, :5]), full[:, :5])
    changed = torch.cat([token_ids[:, :5], (token_ids[:, 5:] + 1) % 100], dim=1)
    torch.testing.assert_close(clip.encode_text(changed)[:, :5], full[:, :5])
    assert not torch.allclose(clip.encode_text(changed)[:, 5:], full[:, 5:])


@torch.no_grad()
def test_items_of_a_batch_do_not_mix():
    clip, (pixels, token_ids) = build(), random_inputs()
    torch.testing.assert_close(clip.encode_image(pixels)[1:2], clip.encode_image(pixels[1:2]))
    torch.testing.assert_close(clip.encode_text(token_ids)[1:2], clip.encode_text(token_ids[1:2]))


@pytest.mark.parametrize(
    ("size", "stride", "grid"),
    [((64, 32), 8, (8, 4)), ((30, 19), 8, (3, 2)), ((8, 8), 8, (1, 1)), ((24, 16), 3, (6, 3))],
)
@torch.no_grad()
def test_any_image_size_and_stride(size, stride, grid):
    config = replace(SMALL, image_size=size, stride=stride)
    tokens = build(config).encode_image(random_inputs(config)[0])
    assert config.grid == grid
    assert tokens.shape == (3, 1 + grid[0] * grid[1], 48)


@torch.no_grad()
def test_layer_norms_compute_in_float32_also_under_autocast(monkeypatch):
    clip, (pixels, token_ids) = build(), random_inputs()
    computed_in = []

    def record(x, *args):
        computed_in.append(x.dtype)
        return layer_norm(x, *args)

    layer_norm = F.layer_norm
    monkeypatch.setattr(F, "layer_norm", record)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        clip.encode_image(pixels)
        clip.encode_text(token_ids)
        half = clip.ln_final(torch.ones(1, 32, dtype=torch.bfloat16))
    assert computed_in == [torch.float32] * 12
    assert half.dtype == torch.bfloat16


def test_gradients_reach_every_parameter():
    clip, (pixels, token_ids) = build(), random_inputs()
    (clip.encode_image(pixels)[:, 0].square().sum() + clip.encode_text(token_ids)[:, -1].square().sum()).backward()
    assert [name for name, parameter in clip.named_parameters() if not parameter.grad.abs().sum() > 0] == []


def test_initial_weights_follow_from_the_generator_alone():
    torch.manual_seed(0)
    first = build(seed=3).state_dict()
    torch.manual_seed(1)
    again, other = build(seed=3).state_dict(), build(seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["visual.conv1.weight"], other["visual.conv1.weight"])


def test_initialising_leaves_the_global_random_state_alone():
    clip = Clip(SMALL)
    before = torch.random.get_rng_state()
    clip.initialise(torch.Generator().manual_seed(0))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_initialising_replaces_every_weight():
    clip = Clip(SMALL)
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.fill_(torch.nan)
    clip.initialise(torch.Generator().manual_seed(0))
    assert all(parameter.isfinite().all() for parameter in clip.parameters())


def test_initial_weights_have_openais_scale():
    state = build(SIZES["tiny"]).state_dict()
    block = "visual.transformer.resblocks.1."
    for name, std in {
        f"{block}attn.in_proj_weight": 128**-0.5,
        f"{block}attn.out_proj.weight": 128**-0.5 / 2,
        f"{block}mlp.c_fc.weight": 256**-0.5,
        f"{block}mlp.c_proj.weight": 128**-0.5 / 2,
        "visual.proj": 128**-0.5,
        "token_embedding.weight": 0.02,
    }.items():
        assert state[name].std().item() == pytest.approx(std, rel=0.05), name


def test_initial_positions_are_small_and_tell_rows_from_columns():
    positions = build(SIZES["tiny"]).visual.positional_embedding.detach()
    table = positions[1:].unflatten(0, (8, 4))
    assert positions[0].count_nonzero() == 0
    assert table.square().mean().sqrt().item() == pytest.approx(0.02, rel=1e-4)
    assert torch.equal(table[:, 0, :64], table[:, 3, :64])
    assert torch.equal(table[0, :, 64:], table[7, :, 64:])
    assert len({tuple(row) for row in positions.tolist()}) == 33


def test_parameter_names_are_openais():
    state = published.arrays("clip_tiny_state")
    config = replace(SMALL, vision_layers=2, text_layers=2)
    assert set(Clip(config).state_dict()) == set(state) - {"logit_scale"}


@pytest.mark.parametrize(
    ("name", "parameters"), [("ViT-B-16", 149_620_737), ("ViT-B-32", 151_277_313), ("ViT-L-14", 427_616_513)]
)
def test_named_sizes_have_the_published_number_of_parameters(name, parameters):
    """The published figures hold for 224 x 224 pixels and count the logit scale."""
    with torch.device("meta"):
        clip = Clip(replace(SIZES[name], image_size=(224, 224)))
    assert sum(parameter.numel() for parameter in clip.parameters()) + 1 == parameters


def test_config_survives_json():
    config = replace(SMALL, stride=3, quick_gelu=False)
    assert ClipConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": 9}, "stride of 9 pixels would leave gaps between patches of 8"),
        ({"image_size": (40, 7)}, "40 x 7 pixels is smaller than one patch of 8"),
        ({"image_size": (40,)}, "positive numbers"),
        ({"image_size": 40}, "not the sizes of a CLIP"),
        ({"vision_heads": 3}, "vision width 64 cannot be shared by 3"),
        ({"text_heads": 5}, "text width 32 cannot be shared by 5"),
        ({"text_layers": 0}, "positive numbers"),
        ({"depth": 3}, "not the sizes of a CLIP"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        ClipConfig.from_dict(SMALL.to_dict() | change)


def test_wrong_inputs_are_refused():
    clip = build()
    with pytest.raises(UsageError, match=r"shape \(3, 40, 24\), not \(3, 24, 40\)"):
        clip.encode_image(torch.zeros(1, 3, 24, 40))
    with pytest.raises(UsageError, match="17 tokens exceed the context of 16"):
        clip.encode_text(torch.zeros(1, 17, dtype=torch.long))


@torch.no_grad()
def test_tokens_that_are_not_visible_change_nothing_for_the_others():
    transformer = Transformer(16, 2, 4, quick_gelu=True, causal=False)
    transformer.initialise(torch.Generator().manual_seed(0))
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    visible = torch.tensor([[True, True, True, False, False], [True, False, True, True, True]])
    seen = transformer(x, visible)
    torch.testing.assert_close(seen[0, :3], transformer(x[:1, :3])[0])
    torch.testing.assert_close(seen[1, [0, 2, 3, 4]], transformer(x[1:, [0, 2, 3, 4]])[0])
    torch.testing.assert_close(transformer(x, torch.ones_like(visible)), transformer(x))


@torch.no_grad()
def test_the_global_tokens_alone_are_those_among_the_others():
    model = build()
    pixels, token_ids = random_inputs()
    token_ids[0, 5:] = torch.tensor([token_ids.max(), *[0] * (token_ids.shape[1] - 6)])
    seen, read = model.see(pixels, whole_only=True), model.read(token_ids, whole_only=True)
    assert seen.values.shape[1] == read.values.shape[1] == 1
    torch.testing.assert_close(seen.whole, model.see(pixels).whole)
    torch.testing.assert_close(read.whole, model.read(token_ids).whole)


def test_gradients_of_the_global_tokens_are_equal_when_they_come_alone():
    model = build()
    pixels, token_ids = random_inputs()
    found = []
    for whole_only in (False, True):
        model.zero_grad()
        whole = model.see(pixels, whole_only=whole_only).whole, model.read(token_ids, whole_only=whole_only).whole
        torch.cat(whole).square().sum().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*found, rtol=1e-3, atol=2e-4)
