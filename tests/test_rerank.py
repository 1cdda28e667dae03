"""Ranking the first images of each caption again: against a loop over pairs, in bounded memory, and what it refuses."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata

import numpy as np
import pytest
import tiny
import torch

from tiprctl import reranking
from tiprctl.checkpoint_file import read_header
from tiprctl.data.decoding import DecodedImages
from tiprctl.data.phrases import phrases_of
from tiprctl.data.pruning import prune_captions
from tiprctl.errors import InputError, UsageError
from tiprctl.evaluation import EvaluationData, score, score_reranked, top_hits
from tiprctl.metrics import top_ranks
from tiprctl.models.clip import Clip
from tiprctl.models.embedder import Embedder, ModelOrigin
from tiprctl.models.encoder import DualEncoder
from tiprctl.models.heads.division import VisualDivision
from tiprctl.pixels import normalise
from tiprctl.prompts import prompt
from tiprctl.reranking import Reranking, check_reranks, rerank, rerank_files
from tiprctl.runs import BEST
from tiprctl.sources import load_embedder
from tiprctl.tokenizer import default_tokenizer
from tiprctl.training import Trainer

CPU = torch.device("cpu")
CAPTIONS = [
    "A woman in a red coat and black trousers, with a brown bag.",
    "He walks.",
    "The man wears a red coat, white shoes and blue jeans and carries a black backpack.",
    "A tall man with short hair.",
    "A woman with a brown bag, and black trousers.",
]


@pytest.fixture
def embedder():
    return Embedder(division(), device=CPU, origin=ModelOrigin("a model", tagger="textblob"))


def division(head="division"):
    clip = Clip(replace(tiny.CLIP, vocab_size=49408))
    clip.initialise(torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = DualEncoder(clip, head)
        for parameter in encoder.head.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return encoder


@pytest.fixture
def images():
    decoded = DecodedImages([], tiny.CLIP.image_size)
    decoded.kept = torch.randint(0, 256, (9, 3, 16, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return decoded


@pytest.fixture
def first():
    """Six of the images for each caption; the last image is among nobody's."""
    generator = torch.Generator().manual_seed(2)
    return torch.stack([torch.randperm(8, generator=generator)[:6] for _ in CAPTIONS])


@torch.no_grad()
def pair_score(encoder, caption, pixels):
    """The score of one caption and one image, with no other beside them and no padding."""
    prompts = [prompt(phrase) for phrase in phrases_of([caption], "textblob")[0]]

    def read(text):
        return encoder.read(torch.from_numpy(default_tokenizer()([text]))).whole

    seen = encoder.see(normalise(pixels[None]))
    whole = torch.stack([read(text) for text in prompts], dim=1)
    found = torch.ones(1, len(prompts), dtype=torch.bool)
    return encoder.head.pair_scores(seen.whole, seen.values[:, 1:], read(caption), whole, found).item()


def test_equals_a_loop_over_pairs(embedder, images, first):
    done = rerank(embedder, CAPTIONS, images, first)
    before = first.clone()
    for caption, row, order, scores in zip(CAPTIONS, first.tolist(), done.indices.tolist(), done.scores.tolist()):
        expected = {image: pair_score(embedder.encoder, caption, images.kept[image]) for image in row}
        assert order == sorted(row, key=lambda image: -expected[image])
        assert scores == pytest.approx([expected[image] for image in order], abs=1e-5)
    assert not torch.equal(done.indices, first), "the order must change for the test to tell anything"
    assert torch.equal(first, before)
    assert (done.first, done.pairs, done.images) == (6, 30, 8)
    assert done.describe() == {
        "rerank": 6,
        "rerank_cost": {"pairs": 30, "images": 8, "seconds": pytest.approx(done.seconds, abs=0.01)},
    }


def test_works_in_batches_and_encodes_nothing_twice(embedder, images, first, monkeypatch):
    whole = rerank(embedder, CAPTIONS, images, first)
    monkeypatch.setattr(reranking, "IMAGE_BATCH", 3)
    monkeypatch.setattr(reranking, "CAPTIONS_AT_ONCE", 3)
    monkeypatch.setattr(reranking, "TAGGED_AT_ONCE", 2)
    scored = []
    original = VisualDivision.pair_scores

    def spy(self, images, patches, captions, *rest):
        scored.append((len(images), len(captions)))
        return original(self, images, patches, captions, *rest)

    monkeypatch.setattr(VisualDivision, "pair_scores", spy)
    passes = tiny.tower_passes(monkeypatch)
    done = rerank(embedder, CAPTIONS, images, first)
    assert torch.equal(done.indices, whole.indices)
    assert torch.allclose(done.scores, whole.scores, atol=1e-6)
    counts = first.flatten().bincount().tolist()
    assert max(counts) > 3
    assert scored == [(1, min(3, count - start)) for count in counts for start in range(0, count, 3)]
    assert [len(pixels) for pixels in passes["encode_image"]] == [3, 3, 2]
    assert torch.equal(torch.cat(passes["encode_image"]), normalise(images.kept[:8]))
    prompts = [prompt(phrase) for phrases in phrases_of(CAPTIONS, "textblob") for phrase in phrases]
    assert len(set(prompts)) < len(prompts)
    assert sum(map(len, passes["encode_text"])) == len(CAPTIONS) + len(set(prompts))


def test_half_precision_moves_the_scores_little(embedder, images, first):
    half = Embedder(embedder.encoder, device=CPU, amp="bf16", origin=embedder.origin)
    exact, rounded = (
        done.scores.gather(1, done.indices.argsort(dim=1))
        for done in (rerank(embedder, CAPTIONS, images, first), rerank(half, CAPTIONS, images, first))
    )
    assert rounded.dtype == torch.float32
    assert torch.allclose(exact, rounded, atol=0.01)
    assert exact.std() > 0.05
    assert not torch.equal(exact, rounded)


def test_a_caption_alone_with_one_image(embedder, images):
    done = rerank(embedder, CAPTIONS[:1], images, torch.tensor([[4]]))
    assert done.indices.tolist() == [[4]]
    assert done.scores.item() == pytest.approx(pair_score(embedder.encoder, CAPTIONS[0], images.kept[4]), abs=1e-5)


def test_equal_scores_keep_their_order(embedder, images, first, monkeypatch):
    monkeypatch.setattr(
        VisualDivision, "pair_scores", lambda self, images, patches, captions, *rest: torch.zeros(1, len(captions))
    )
    assert torch.equal(rerank(embedder, CAPTIONS, images, first).indices, first)


def test_a_score_that_is_no_number_is_refused(embedder, images, first, monkeypatch):
    monkeypatch.setattr(
        VisualDivision,
        "pair_scores",
        lambda self, images, patches, captions, *rest: captions[None, :, 0] * float("nan"),
    )
    with pytest.raises(InputError, match=r"not numbers \(NaN\)\na model\n"):
        rerank(embedder, CAPTIONS, images, first)


def test_a_model_reads_as_many_phrases_as_it_learnt(embedder, images, first, monkeypatch):
    embedder.origin = replace(embedder.origin, config=tiny.recipe(**{"captions.phrases": 2}))
    shapes = []
    original = VisualDivision.pair_scores

    def spy(self, *inputs):
        shapes.append(inputs[3].shape)
        return original(self, *inputs)

    monkeypatch.setattr(VisualDivision, "pair_scores", spy)
    rerank(embedder, CAPTIONS, images, first)
    assert {shape[1] for shape in shapes} == {2}


def test_progress_counts_captions_sentences_and_images(embedder, images, first):
    counted = Counter()
    totals = {}

    @contextmanager
    def progress(what, total, unit):
        totals[what] = total
        yield lambda count: counted.update({what: count})

    rerank(embedder, CAPTIONS, images, first, progress=progress)
    assert list(totals) == ["Tagging", "Encoding", "Re-ranking"]
    assert totals == counted
    assert (totals["Tagging"], totals["Re-ranking"]) == (5, 8)


def test_a_head_that_looks_at_no_pairs_is_named(images, first):
    embedder = Embedder(division("global"), device=CPU, origin=ModelOrigin("runs/plain"))
    with pytest.raises(UsageError, match=r"the head global\nruns/plain\n.*, or leave --rerank out"):
        rerank(embedder, CAPTIONS, images, first)


def test_a_tagger_that_is_not_installed_is_named(monkeypatch):
    def missing(package):
        raise metadata.PackageNotFoundError(package)

    check_reranks("division", "textblob", model="m")
    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(UsageError, match=r"textblob is not installed, which [\s\S]*\nm\nInstall it with `pip install"):
        check_reranks("division", "textblob", model="m")
    with pytest.raises(UsageError, match="HanTa is not installed"):
        check_reranks("division", None, model="m")


def test_files_are_ranked_again_for_captions_that_have_more_or_fewer(embedder, cuhk_manifest):
    split = cuhk_manifest.split("train")
    chosen = [[6, 1, 3], [1], [4, 3]]
    files = [[split.image_paths[row] for row in some] for some in chosen]
    scores, done = rerank_files(embedder, CAPTIONS[:3], files)

    whole = DecodedImages(split.image_paths, embedder.image_size)
    for caption, rows, ranked in zip(CAPTIONS, chosen, scores):
        expected = rerank(embedder, [caption], whole, torch.tensor([rows]))
        assert list(ranked) == [split.image_paths[row] for row in expected.indices[0]]
        assert list(ranked.values()) == pytest.approx(expected.scores[0].tolist(), abs=1e-5)
    assert (done.images, done.first) == (4, 3)


def test_a_file_that_is_gone_is_told(embedder, cuhk_manifest):
    files = [[cuhk_manifest.split("train").image_paths[0], cuhk_manifest.root / "gone.jpg"]]
    with pytest.raises(InputError, match="no such image file") as caught:
        rerank_files(embedder, CAPTIONS[:1], files)
    assert caught.value.where == str(cuhk_manifest.root / "gone.jpg")
    assert "tiprctl index sync" in caught.value.remedy


@pytest.mark.parametrize("width", [2, 3, 5])
def test_a_former_ranking_goes_on_behind_the_new_order(width):
    done = Reranking(torch.tensor([[7, 5, 6]]), torch.tensor([[3.0, 2.0, 1.0]]), images=3, seconds=0.0)
    indices, scores = torch.tensor([[5, 6, 7, 1, 2]]), torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5]])
    new, raised = done.put_first(indices[:, :width], scores[:, :width])
    assert new.tolist() == [[7, 5, 6, 1, 2][:width]]
    assert raised.tolist() == [pytest.approx([3.0, 2.0, 1.0, 0.6, 0.5][:width])]


def test_figures_and_hits_follow_the_new_order(embedder, cuhk_manifest):
    split = cuhk_manifest.split("test")
    data = EvaluationData(split, embedder.image_size)
    features = data.encode(embedder)
    best, _ = top_ranks(features.text, features.image, 3)
    done = rerank(embedder, split.captions, data.images, best)
    orders = [[*new, *(set(range(4)) - set(new))] for new in done.indices.tolist()]
    hits = [np.flatnonzero(split.image_pids[order] == pid) for order, pid in zip(orders, split.caption_pids)]

    found, plain = score_reranked(features, split, done), score(features, split)

    assert found.reranking is done
    assert found.text_to_image.recall[1] == pytest.approx(100 * np.mean([0 in ranks for ranks in hits]))
    assert found.text_to_image.mean_inp == pytest.approx(100 * np.mean([len(r) / (r[-1] + 1) for r in hits]))
    precisions = [np.mean([(n + 1) / (rank + 1) for n, rank in enumerate(ranks)]) for ranks in hits]
    assert found.text_to_image.mean_ap == pytest.approx(100 * np.mean(precisions))
    assert found.text_to_image.mean_ap != plain.text_to_image.mean_ap
    paths = [[hit["path"] for hit in one["hits"]] for one in top_hits(features, split, done)]
    assert paths == [[str(split.image_paths[image]) for image in order] for order in orders]


def test_a_checkpoint_tells_the_tagger_wherever_it_is_moved(cuhk_manifest, tmp_path):
    prune_captions(cuhk_manifest, "textblob")
    config = tiny.recipe(epochs=1, **{"captions.prune": 0.2})
    Trainer(config, cuhk_manifest, tmp_path / "run", device=CPU).run()
    moved = (tmp_path / "run" / BEST).rename(tmp_path / "moved.safetensors")
    assert load_embedder(moved, device=CPU).origin.tagger == "textblob"
    assert read_header(moved)["captions"]["fingerprint"] == cuhk_manifest.fingerprint
