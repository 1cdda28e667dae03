"""CFine's head and objectives: against the published code's numbers, and against loops over samples."""

from dataclasses import replace

import published
import pytest
import tiny
import torch
from torch.nn import functional as F

from tiprctl.config import ObjectiveConfig, from_dict
from tiprctl.errors import UsageError
from tiprctl.losses import cmpc_loss, cmpm_loss, cosine_similarity, diversity_loss, ranking_loss
from tiprctl.metrics import rank_metrics
from tiprctl.models.clip import Clip
from tiprctl.models.encoder import DualEncoder
from tiprctl.models.encodings import EncoderSpec, Encodings, Needs, encode
from tiprctl.models.heads.base import Selection
from tiprctl.models.heads.salient_parts import PartsConfig, SalientParts
from tiprctl.models.tokens import Tokens
from tiprctl.objectives.base import Role
from tiprctl.objectives.cfr import CfrConfig, CrossGrainedRefinement, cross_grained
from tiprctl.objectives.composition import Composition, loss_names
from tiprctl.objectives.fcd import CorrespondenceDiscovery, FcdConfig, correspondences, placewise
from tiprctl.objectives.mgf import MgfConfig, MultiGrainedFeatures
from tiprctl.objectives.ranked import picked, rank

REFERENCE = published.arrays("cfine")
INPUTS = ("state.", "image_tokens", "text_tokens", "tokens", "labels", "W", "block_x", "block_y", "block_pad_mask")
INPUTS += ("image_attention_last", "text_attention_last", "cr_similarity")
OUTPUTS = [name for name in REFERENCE if not name.startswith(INPUTS)]
THEIRS = {
    "bottleneck_image.": "image_neck.",
    "bottleneck_text.": "text_neck.",
    "block.layers.0.self_attn.": "blocks.0.self_attn.",
    "block.layers.0.attn.": "blocks.0.cross_attn.",
    "block.layers.0.ln_0.": "blocks.0.ln_self.",
    "block.layers.0.ln_1.": "blocks.0.ln_cross.",
    "block.layers.0.ln_2.": "blocks.0.ln_mlp.",
    "block.layers.0.mlp.": "blocks.0.mlp.",
}
"""Prefixes of parameters in the authors' names and in the head's."""
PAIRS, WIDTH, PEOPLE = 6, 64, 5
SPEC = EncoderSpec(replace(tiny.CLIP, embed_dim=WIDTH), 3 * WIDTH, PEOPLE, "parts")
CFINE = (
    ObjectiveConfig(name="mgf"),
    ObjectiveConfig(name="cfr", weight=10.0),
    ObjectiveConfig(name="fcd", weight=10.0),
)


def generator():
    return torch.Generator().manual_seed(0)


def their_head():
    head = SalientParts(PartsConfig(heads=2), WIDTH)
    state = {key.removeprefix("state."): value for key, value in REFERENCE.items() if key.startswith("state.")}
    own = head.state_dict()
    head.load_state_dict({(name := published.ours(key, THEIRS)): v.view(own[name].shape) for key, v in state.items()})
    return head


def their_tokens(**captions):
    """The tokens of their batch, with gradients; their code may pick any token of a caption but the global one."""
    place = torch.zeros(PAIRS, dtype=torch.long)
    image = Tokens(
        REFERENCE["image_tokens"].clone().requires_grad_(), place, attention=REFERENCE["image_attention_last"]
    )
    given = {"words": torch.ones_like(REFERENCE["tokens"], dtype=torch.bool)} | captions
    text = Tokens(
        REFERENCE["text_tokens"].clone().requires_grad_(),
        place,
        visible=REFERENCE["tokens"] != 0,
        attention=REFERENCE["text_attention_last"],
        **given,
    )
    return image, text


def grains(features):
    return features.vector.unflatten(1, (3, WIDTH))


@pytest.fixture(scope="module")
def step():
    """All that the authors' forward and backward passes give, by their names."""
    head, (image, text) = their_head(), their_tokens()
    found = in_inference(head.eval(), image, text) | of_the_block(head.blocks[0])
    head = their_head().train()
    enc = Encodings(REFERENCE["tokens"], image, text, head)
    inputs = image.values, text.values

    cfr, fcd = CrossGrainedRefinement(CfrConfig(), SPEC), CorrespondenceDiscovery(FcdConfig(), SPEC)
    found["sim_cs"], found["sim_cd"] = cfr.similarity(enc), fcd.similarity(enc)
    cells = torch.arange(36.0)
    weighted = found["sim_cs"] * cells.view(6, 6) / 36 + found["sim_cd"] * cells.flip(0).view(6, 6) / 360
    gradients = torch.autograd.grad(weighted.sum(), inputs, retain_graph=True)
    found["simgrad_image_tokens"], found["simgrad_text_tokens"] = gradients

    batch = tiny.NoiseBatch(torch.empty(0), REFERENCE["tokens"], REFERENCE["labels"])
    matched = their_objective()(enc, batch)
    found |= {f"{name}_loss": matched.figures[name] for name in ("cmpm", "cmpc")}
    found["loss_without_sim"], found["sim_loss"] = matched.loss, rank([cfr, fcd], enc, batch).loss
    found["total_loss"] = matched.loss + 10 * found["sim_loss"]
    gradients = torch.autograd.grad(found["total_loss"], inputs)
    found["grad_image_tokens"], found["grad_text_tokens"] = gradients
    return found | of_each_grain(grains(enc.image_features), grains(enc.text_features)) | of_the_ranking()


def their_objective(**options):
    mgf = MultiGrainedFeatures(MgfConfig(**options), SPEC)
    mgf.load_state_dict({"weight": REFERENCE["W"]})
    return mgf


def in_inference(head, image, text):
    features = {"image": head.image(image), "text": head.text(text)}
    selections = {side: value.selection.index for side, value in features.items()}
    score, labels = cosine_similarity(features["image"].vector, features["text"].vector), REFERENCE["labels"]
    recalls = [rank_metrics(matrix, labels, labels).recall for matrix in (score, score.T)]
    return {
        "eval_img_f": grains(features["image"]),
        "eval_text_f": grains(features["text"]),
        "image_selected_index": selections["image"].flatten(1),
        "text_selected_index": selections["text"].flatten(1),
        "K_image_text": torch.tensor([index.shape[2] for index in selections.values()]),
        "eval_concat_score": score,
        "eval_topk_i2t1_i2t5_t2i1_t2i5": torch.tensor([recall[k] for recall in recalls for k in (1, 5)]),
    }


def of_the_block(block):
    x, y, hidden = (REFERENCE[name] for name in ("block_x", "block_y", "block_pad_mask"))
    present, place = torch.ones(3, 1, 5, dtype=torch.bool), torch.zeros(3, dtype=torch.long)
    return {
        "block_out": block(x[:, None], present, Tokens(y, place))[:, 0],
        "block_out_masked": block(x[:, None], present, Tokens(y, place, visible=~hidden))[:, 0],
    }


def of_each_grain(image, text):
    labels, found = REFERENCE["labels"], {"train_img_f": image, "train_text_f": text}
    found |= {"diversity_image": diversity_loss(image[:, 1:]), "diversity_text": diversity_loss(text[:, 1:])}
    for grain in range(3):
        pair = image[:, grain], text[:, grain], labels
        found |= {f"cmpm_{grain}": cmpm_loss(*pair), f"cmpc_{grain}": cmpc_loss(*pair, REFERENCE["W"])}
    cosines, matches = cosine_similarity(image[:, 2], text[:, 2]), labels[:, None] == labels
    return found | {"pos_avg_sim": cosines[matches].mean(), "neg_avg_sim": cosines[~matches].mean()}


def of_the_ranking():
    similarity = REFERENCE["cr_similarity"].clone().requires_grad_()
    loss = ranking_loss(similarity, REFERENCE["labels"])
    return {"cr_loss": loss, "cr_grad": torch.autograd.grad(loss, similarity)[0]}


@pytest.mark.parametrize("name", OUTPUTS)
def test_each_value_and_gradient_equals_the_published_code(step, name):
    absolute = 1e-4 if REFERENCE[name].ndim else 0
    torch.testing.assert_close(step[name].detach(), REFERENCE[name], rtol=1e-4, atol=absolute)


@torch.no_grad()
def test_padding_that_the_published_code_picks_is_not_picked():
    """Captions of 12, 9 and 5 tokens have fewer than 12 words; the values of the reference are unsound there alone."""
    theirs, visible = REFERENCE["text_selected_index"].view(6, 2, 6), REFERENCE["tokens"] != 0
    assert [int((~visible[row, theirs[row]]).sum()) for row in range(6)] == [0, 0, 1, 4, 0, 8]

    _, text = their_tokens(words=None)
    features = their_head().eval().text(text)

    index, found = features.selection.index, features.selection.found
    assert found.sum(dim=(1, 2)).tolist() == [12, 12, 11, 8, 12, 4]
    assert torch.equal(found, visible[torch.arange(6)[:, None, None], theirs])
    assert torch.equal(index[found], theirs[found])
    short = torch.tensor([False, False, True, True, False, True])
    torch.testing.assert_close(grains(features)[~short], REFERENCE["eval_text_f"][~short], rtol=1e-4, atol=1e-5)
    deviation = (grains(features) - REFERENCE["eval_text_f"]).abs().amax(dim=2)
    assert (deviation[short].amax(dim=1) > 0.01).all() and (deviation[:, 0] < 1e-5).all()


def noise_tokens(lengths, *, longest=12, width=16, seed=0):
    """Captions of these lengths, with the marks of start and end, in a context of 20."""
    generator = torch.Generator().manual_seed(seed)
    lengths, positions = torch.tensor(lengths)[:, None], torch.arange(longest)
    visible = positions < lengths
    attention = torch.rand(len(lengths), longest, generator=generator).masked_fill(~visible, 0)
    words = (positions > 0) & (positions < lengths - 1)
    values = torch.randn(len(lengths), longest, width, generator=generator)
    return Tokens(values, lengths[:, 0] - 1, visible, attention, words, context=20)


def head(width=16, **options):
    torch.manual_seed(1)
    return from_head(SalientParts(from_dict(PartsConfig, options), width))


def from_head(head):
    """The head with running statistics that are not those of a fresh one."""
    for neck in (head.image_neck, head.text_neck):
        neck.running_mean.normal_()
        neck.running_var.uniform_(0.5, 2)
        torch.nn.init.uniform_(neck.weight, 0.5, 2)
    return head


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"groups": 1, "heads": 4}, {"groups": 3, "depth": 2, "heads": 2}])
def test_parts_equal_a_loop_over_captions_of_their_own_length(options):
    parts, tokens = head(**options).eval(), noise_tokens([12, 7, 5, 3, 2])
    size = int(0.2 * 20)
    expected = []
    for row, place in enumerate(tokens.place.tolist()):
        values, attention = tokens.values[row, : place + 1], tokens.attention[row, : place + 1]
        words = sorted(range(1, place), key=lambda word: -attention[word])
        features = [values[place]]
        for group in range(parts.config.groups):
            query = torch.stack([values[place], *(values[word] for word in words[group * size : (group + 1) * size])])
            for block in parts.blocks:
                normed = block.ln_self(query)
                query = query + block.self_attn(normed, normed, normed)[0]
                query = query + block.cross_attn(block.ln_cross(query), values, values)[0]
                query = query + block.mlp(block.ln_mlp(query))
            features.append(query[0])
        expected.append(parts.text_neck(torch.stack(features)).flatten())

    features = parts.text(tokens)

    assert features.vector.shape == (5, parts.width) == (5, (1 + parts.config.groups) * 16)
    torch.testing.assert_close(features.vector, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_groups_fill_in_order_of_attention_as_far_as_there_are_words():
    tokens = noise_tokens([12, 7, 3, 2])
    selection = head().text(tokens).selection
    assert selection.index.shape == selection.found.shape == (4, 2, 4)
    assert selection.found.sum(dim=2).tolist() == [[4, 4], [4, 1], [1, 0], [0, 0]]
    for row, place in enumerate(tokens.place.tolist()):
        index = selection.index[row][selection.found[row]].tolist()
        assert index == sorted(range(1, place), key=lambda word: -tokens.attention[row, word])[:8]


def test_words_without_any_attention_are_picked_before_what_is_no_word():
    tokens = noise_tokens([5])
    selection = head().text(replace(tokens, attention=torch.zeros_like(tokens.attention))).selection
    assert sorted(selection.index[selection.found].tolist()) == [1, 2, 3]


def encoder(**options):
    clip = Clip(tiny.CLIP)
    clip.initialise(generator())
    torch.manual_seed(0)
    return DualEncoder(clip, "parts", options)


@torch.no_grad()
def test_features_of_a_caption_depend_on_nothing_beside_it():
    model, batch = encoder().eval(), tiny.batch()
    from_head(model.head)
    token_ids = batch.token_ids.clone()
    token_ids[1, 5], token_ids[1, 6:] = 99, 0
    features = model.text_features(token_ids)
    for padding in (1, 68):
        padded = F.pad(token_ids, (0, padding))
        torch.testing.assert_close(model.text_features(padded), features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.text_features(token_ids[1:2, :6]), features[1:2], rtol=1e-4, atol=1e-5)
    picked = model.head.text(model.read(token_ids)).selection
    assert set(picked.index[1][picked.found[1]].tolist()) == {1, 2, 3, 4}
    assert model.image_features(batch.pixels).shape == features.shape == (6, model.head.width) == (6, 48)


def test_a_batch_of_one_is_trained_with_the_running_statistics():
    parts, tokens = head(), noise_tokens([9])
    expected = parts.eval().text(tokens).vector
    before = parts.text_neck.running_mean.clone()
    trained = parts.train().text(tokens).vector
    torch.testing.assert_close(trained, expected)
    assert torch.equal(parts.text_neck.running_mean, before)
    parts.text(noise_tokens([9, 8]))
    assert not torch.equal(parts.text_neck.running_mean, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 6}, "6 groups would pick 120% of the tokens"),
        ({"image_ratio": 0.0}, "image_ratio"),
        ({"heads": 3}, "3 attention heads cannot share the width 16"),
    ],
)
def test_parts_that_cannot_be_made_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        encoder(**options)


def cross_grained_by_loop(whole, parts, found, temperature):
    rows = []
    for one in whole:
        row = []
        for sample, present in zip(parts, found):
            scores = torch.stack([F.cosine_similarity(one, part, dim=0) for part in sample[present]]) / temperature
            row.append((scores.softmax(0) * scores).sum())
        rows.append(torch.stack(row))
    return torch.stack(rows)


def ragged(*counts, most=5, width=8, seed=0):
    tokens = torch.randn(len(counts), most, width, generator=torch.Generator().manual_seed(seed))
    return tokens, torch.arange(most) < torch.tensor(counts)[:, None]


def test_cross_grained_similarity_equals_the_loop():
    whole, _ = ragged(5, 5, 5)
    parts, found = ragged(5, 2, 1, 4, seed=1)
    similarity = cross_grained(whole[:, 0], parts, found, temperature=0.07)
    torch.testing.assert_close(similarity, cross_grained_by_loop(whole[:, 0], parts, found, 0.07))


def best_by_loop(shares, candidates, count):
    """The mean of those of `candidates` (M, D) whose `shares` (M) are largest."""
    order = sorted(range(len(candidates)), key=lambda index: -shares[index])[:count]
    return torch.stack([candidates[index] for index in order]).mean(0)


@pytest.mark.parametrize("best", [1, 3, 9])
def test_correspondences_equal_the_loop(best):
    patches, has_patch = ragged(4, 3, 4, most=4)
    words, has_word = ragged(5, 2, 1, seed=1)
    of_patches, of_words = correspondences(patches, has_patch, words, has_word, best=best)
    for row in range(3):
        own_patches, own_words = patches[row][has_patch[row]], words[row][has_word[row]]
        cosines = [[F.cosine_similarity(patch, word, dim=0) for word in own_words] for patch in own_patches]
        shares = torch.tensor(cosines) if len(own_words) == 1 else torch.tensor(cosines).softmax(1)
        for place, line in enumerate(shares):
            torch.testing.assert_close(of_patches[row, place], best_by_loop(line, own_words, best))
        for place, line in enumerate(shares.T):
            torch.testing.assert_close(of_words[row, place], best_by_loop(line, own_patches, best))


def test_placewise_similarity_equals_the_loop():
    left, has_left = ragged(5, 2, 1)
    right, has_right = ragged(3, 5, 0, 1, seed=1)
    similarity = placewise(left, has_left, right, has_right)
    for row in range(3):
        for column in range(4):
            shared = min(int(has_left[row].sum()), int(has_right[column].sum()))
            cosines = [F.cosine_similarity(left[row, at], right[column, at], dim=0) for at in range(shared)]
            expected = torch.stack(cosines).mean() if cosines else torch.tensor(0.0)
            torch.testing.assert_close(similarity[row, column], expected)


def test_what_was_not_found_changes_no_similarity_and_gets_no_gradient():
    patches, has_patch = ragged(4, 4, most=4)
    words, has_word = ragged(3, 1, seed=1)
    whole, _ = ragged(5, 5, seed=2)

    def similarities(words):
        of_patches, of_words = correspondences(patches, has_patch, words, has_word, best=3)
        return (
            cross_grained(whole[:, 0], words, has_word, temperature=0.07),
            placewise(patches, has_patch, of_patches, has_patch),
            placewise(of_words, has_word, words, has_word),
        )

    changed = torch.where(has_word[:, :, None], words, 100.0).requires_grad_()
    found = similarities(changed)
    for value, expected in zip(found, similarities(words)):
        torch.testing.assert_close(value, expected)
    sum((value**2).sum() for value in found).backward()
    assert torch.equal(changed.grad.abs().sum(2) > 0, has_word)


def test_a_caption_without_a_word_has_its_global_token_for_one():
    tokens = noise_tokens([6, 2])
    index = torch.tensor([[[3, 1], [2, 0]], [[7, 7], [7, 7]]])
    found = torch.tensor([[[True, True], [True, False]], [[False, False], [False, False]]])
    everything, there = picked(tokens, Selection(index, found))
    assert there.tolist() == [[True, True, True, False], [True, False, False, False]]
    assert torch.equal(everything[0, :3], tokens.values[0, [3, 1, 2]])
    assert torch.equal(everything[1, 0], tokens.values[1, 1])
    first, there = picked(tokens, Selection(index, found), groups=1)
    assert torch.equal(first[0], tokens.values[0, [3, 1]]) and there.tolist() == [[True, True], [True, False]]


def compose(*configs, **options):
    return Composition(encoder(**options), configs or CFINE, identities=3)


def test_similarities_that_train_together_are_ranked_as_one():
    composition, batch = compose(), tiny.batch()
    losses = composition(batch, 0.0, generator())
    composition = compose()
    enc = encode(composition.encoder, batch, Needs(), generator())
    alone = {name: composition.objectives[name].similarity(enc) for name in ("cfr", "fcd")}
    expected = ranking_loss(alone["cfr"] + alone["fcd"], batch.pids, margin=0.2)
    assert expected > 0
    torch.testing.assert_close(losses.parts["cfr+fcd"], expected.detach())
    torch.testing.assert_close(losses.total.detach(), losses.parts["mgf"] + 10 * losses.parts["cfr+fcd"])
    assert losses.parts.keys() == {"mgf", "mgf/cmpm", "mgf/cmpc", "mgf/diversity", "cfr+fcd"}
    for name, similarity in alone.items():
        found = composition.objectives[name](enc, batch).loss
        torch.testing.assert_close(found, ranking_loss(similarity, batch.pids, margin=0.2))


@pytest.mark.parametrize(
    "second", [ObjectiveConfig(name="fcd", weight=3.0), ObjectiveConfig(name="fcd", options={"margin": 0.1})]
)
def test_one_ranking_has_one_weight_and_one_margin(second):
    with pytest.raises(UsageError, match=r"cfr\+fcd rank one sum .* different weights or margins"):
        compose(ObjectiveConfig(name="cfr"), second)
    apart = compose(ObjectiveConfig(name="cfr", stop=0.5), replace(second, start=0.5))
    assert [set(apart(tiny.batch(), at, generator()).parts) for at in (0.0, 0.5)] == [{"cfr"}, {"fcd"}]


def test_a_training_names_the_losses_that_it_logs():
    contrast, cfr, fcd = ObjectiveConfig(name="itc", stop=0.5), CFINE[1], replace(CFINE[2], start=0.7)
    assert loss_names([contrast, cfr, replace(CFINE[0], start=0.5), fcd]) == ["itc", "cfr", "mgf", "cfr+fcd"]


@pytest.mark.parametrize("name", ["mgf", "cfr", "fcd"])
def test_the_objectives_refuse_another_head(name):
    with pytest.raises(UsageError, match=f"{name} needs the head parts, but the model has the head global") as raised:
        Composition(tiny.encoder(), tiny.objectives(name), identities=3)
    assert "--set model.head=parts" in raised.value.remedy


def test_steps_teach_everything_but_the_biases_of_the_necks_and_bring_the_loss_down():
    composition, batch, before = compose(), tiny.batch(), tiny.batch()
    optimizer = torch.optim.Adam([p for p in composition.parameters() if p.requires_grad], lr=1e-4)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = composition(batch, 0.0, generator()).total
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[0] > losses[1] > losses[2]
    still = [name for name, p in composition.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert still == ["encoder.head.image_neck.bias", "encoder.head.text_neck.bias"]
    for field in ("pixels", "token_ids", "pids"):
        assert torch.equal(getattr(batch, field), getattr(before, field))


def test_a_step_looks_at_each_image_and_caption_once(monkeypatch):
    calls = []
    for name in ("see", "read", "encode_image", "encode_text"):
        original = getattr(Clip, name)

        def spy(*args, name=name, original=original, **asked):
            calls.append(name)
            return original(*args, **asked)

        monkeypatch.setattr(Clip, name, spy)
    compose()(tiny.batch(), 0.0, generator())
    assert calls == ["see", "read"]


def test_the_classifier_learns_as_one_and_the_head_fast():
    composition = compose()
    roles = {id(p): role for role, module in composition.roles() for p in module.parameters()}
    assert roles[id(composition.objectives["mgf"].weight)] is Role.CLASSIFIER
    assert {roles[id(p)] for p in composition.encoder.head.parameters()} == {Role.FAST}
    assert len(roles) == len(list(composition.parameters()))


def only_marks(batch):
    batch.token_ids = torch.tensor([[98, 99, 0]] * 6)


def one_word(batch):
    batch.token_ids = torch.tensor([[98, 5, 99]] * 5 + [[98, 99, 0]])


def one_identity(batch):
    batch.pids = torch.zeros(6, dtype=torch.long)


def one_pair(batch):
    batch.pixels, batch.token_ids, batch.pids = batch.pixels[:1], batch.token_ids[:1], batch.pids[:1]


@pytest.mark.parametrize("change", [only_marks, one_word, one_identity, one_pair])
def test_odd_batches_have_finite_losses_and_gradients(change):
    batch = tiny.batch()
    change(batch)
    composition = compose()
    losses = composition(batch, 0.0, generator())
    losses.total.backward()
    assert losses.total.isfinite()
    assert all(p.grad.isfinite().all() for p in composition.parameters() if p.grad is not None)
    if change in (one_identity, one_pair):
        assert losses.parts["cfr+fcd"] == 0


def test_mgf_weighs_its_terms():
    head, (image, text) = their_head(), their_tokens()
    enc = Encodings(None, image, text, head)
    batch = tiny.NoiseBatch(torch.empty(0), torch.empty(0), REFERENCE["labels"])
    options = {"later": 0.5, "classification": 2.0, "diversity": 3.0}
    expected = sum(REFERENCE[name] for name in ("cmpm_0", "cmpm_1")) + 0.5 * REFERENCE["cmpm_2"]
    expected = expected + 2 * REFERENCE["cmpc_loss"]
    expected = expected + 3 * (REFERENCE["diversity_image"] + REFERENCE["diversity_text"])
    torch.testing.assert_close(their_objective(**options)(enc, batch).loss, expected, rtol=1e-4, atol=0)
