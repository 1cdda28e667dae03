"""`tiprctl eval`: which data a model is measured on, and what it warns of."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import console
import pytest
import tiny

from tiprctl.data.manifest import Manifest, write_manifest
from tiprctl.evaluation import EvaluationData, score
from tiprctl.losses.similarity import cosine_similarity
from tiprctl.models.heads.division import VisualDivision

run = partial(console.run, "eval")


@pytest.fixture
def model(cuhk_manifest, tmp_path, monkeypatch):
    """A checkpoint of a run on the miniature data, whose folder is none of the default ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TIPRCTL_DATA", raising=False)
    return tiny.checkpoint(
        cuhk_manifest, tmp_path / "a-checkpoint-with-quite-a-long-name-that-must-stay-whole.safetensors"
    )


@pytest.fixture
def reranking_model(model, cuhk_manifest, tmp_path):
    """A checkpoint beside it, of a run of SCVD."""
    return tiny.checkpoint(
        cuhk_manifest, tmp_path / "scvd.safetensors", head="division", captions={"tagger": "textblob"}
    )


def other_data(manifest, folder):
    shutil.copytree(manifest.root, folder)
    write_manifest(Manifest(manifest.dataset, folder, manifest.captions.iloc[:-1]))
    return folder


def test_a_model_is_measured_where_it_was_trained(model, cuhk_manifest, tmp_path):
    other_data(cuhk_manifest, tmp_path / "data" / "other")
    done = run(model, "--json")
    assert json.loads(done.stdout)["results"][0]["queries"] == 8
    assert "warning" not in done.stderr


def test_a_piped_table_folds_no_name(model):
    assert str(model) in run(model).stdout


def test_other_data_of_the_same_kind_are_warned_of(model, cuhk_manifest, tmp_path):
    other = other_data(cuhk_manifest, tmp_path / "data" / "other")
    shutil.rmtree(cuhk_manifest.root)
    stderr = run(model, "--json").stderr
    assert "was trained on other data" in stderr
    assert f"{cuhk_manifest.root} (fingerprint {cuhk_manifest.fingerprint[:12]})" in stderr
    assert f"{other.relative_to(tmp_path)} (fingerprint " in stderr


def test_several_data_sets_are_measured_one_by_one(model, cuhk_manifest, tmp_path):
    other = other_data(cuhk_manifest, tmp_path / "data" / "other")
    done = run(model, "--data", cuhk_manifest.root, "--data", other, "--json")
    assert [row["queries"] for row in json.loads(done.stdout)["results"]] == [8, 4, 7, 4]


def test_sets_of_one_kind_are_told_apart_where_their_folders_say_so(model, cuhk_manifest, tmp_path):
    small = other_data(cuhk_manifest, tmp_path / "data" / "CUHK-PEDES-small")
    done = run(model, "--data", cuhk_manifest.root, "--data", small)
    assert [line.split(",")[0] for line in done.stdout.splitlines() if " split, percent" in line] == [
        "cuhk-pedes",
        "cuhk-pedes-small",
    ]


def test_queries_without_a_match_are_counted(model, monkeypatch):
    def one_unmatched(features, split):
        result = score(features, split)
        return replace(result, text_to_image=replace(result.text_to_image, unmatched=1))

    monkeypatch.setattr("tiprctl.evaluation.score", one_unmatched)
    assert "1 queries have no match in the gallery" in run(model).stderr


def refused(*arguments):
    said = run(*arguments, exit_code=3).stderr
    assert "Model:" not in said, "it was looked at before the first model was loaded"
    return said


def test_what_cannot_be_found_or_written_is_said_at_once(model, tmp_path):
    assert "no such run" in refused(model, "runs/misspelt")
    assert "no split named 'tset'" in refused(model, "--split", "tset")
    (tmp_path / "file").touch()
    assert "Cannot write" in refused(model, "--save-ranks", "file/ranks.jsonl")
    assert "Cannot write" in refused(model, "--save-ranks", tmp_path)


def test_data_are_made_ready_once_for_all_models(model, monkeypatch):
    built = []

    class Counted(EvaluationData):
        def __init__(self, *args, **options):
            built.append(args)
            super().__init__(*args, **options)

    monkeypatch.setattr("tiprctl.evaluation.EvaluationData", Counted)
    shutil.copy(model, "other.safetensors")
    results = json.loads(run(model, "other.safetensors", "--json").stdout)["results"]
    assert [row["model"] for row in results] == [model, model, "other.safetensors", "other.safetensors"]
    assert len(built) == 1


def least_like(self, images, patches, captions, prompts, found):
    """Scores that turn the ranking round."""
    return -cosine_similarity(images, captions)


def ranks(*arguments):
    """What is saved of each query, and what is printed."""
    done = run(*arguments, "--save-ranks", "ranks.jsonl", "--json")
    return [json.loads(line) for line in Path("ranks.jsonl").read_text().splitlines()], done


def test_the_first_images_of_a_caption_are_ranked_again(reranking_model, monkeypatch):
    before, plain = ranks(reranking_model)
    monkeypatch.setattr(VisualDivision, "pair_scores", least_like)
    after, done = ranks(reranking_model, "--rerank", 3)

    for old, new in zip(before, after, strict=True):
        order = [hit["path"] for hit in old["hits"]]
        assert [hit["path"] for hit in new["hits"]] == [*reversed(order[:3]), order[3]]
        assert [hit.get("reranked") for hit in new["hits"]] == [True, True, True, None]
        scores = [hit["score"] for hit in old["hits"]]
        assert [hit["score"] for hit in new["hits"]] == pytest.approx(
            [*(-score for score in reversed(scores[:3])), scores[3]], abs=2e-4
        )
    document = json.loads(done.stdout)
    forward, again, backward = document["results"]
    first = 100 * sum(new["hits"][0]["pid"] == new["pid"] for new in after) / len(after)
    assert (document["rerank"], again["direction"], again["rerank"]) == (3, "text_to_image", 3)
    assert again["R@1"] == round(first, 2)
    assert again["mAP"] != forward["mAP"]
    seen_again = len({hit["path"] for old in before for hit in old["hits"][:3]})
    assert again["rerank_cost"]["pairs"] == 24
    assert again["rerank_cost"]["images"] == seen_again
    assert [forward, backward] == json.loads(plain.stdout)["results"]
    assert f"Re-ranked 3 of 4 images for each of 8 captions: 24 pairs, {seen_again} images " in done.stderr
    assert "rerank" not in plain.stdout


def test_a_re_ranked_row_says_so_below_the_first_ranking(reranking_model, cuhk_manifest, tmp_path):
    second = tiny.checkpoint(cuhk_manifest, tmp_path / "second.safetensors", head="division", seed=1)
    done = run(reranking_model, second, "--rerank", 50)
    ways = [
        line.split("│")[2].strip() for line in done.stdout.splitlines() if "safetensors" in line or "mean of" in line
    ]
    assert ways == ["t2i", "t2i, 4 re-ranked", "i2t"] * 3
    assert "Re-ranked 4 of 4 images" in done.stderr


def test_a_model_that_cannot_re_rank_is_told_before_any_is_encoded(reranking_model, model):
    done = run(reranking_model, model, "--rerank", 3, exit_code=2)
    assert "this one has the head global\n" in done.stderr
    assert model in done.stderr
    assert "leave --rerank out" in done.stderr
    assert "Model:" not in done.stderr


def test_none_to_re_rank_is_refused(model):
    assert "--rerank" in run(model, "--rerank", 0, exit_code=2).stderr
