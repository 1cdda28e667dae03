"""Summaries over runs: what is averaged and what is not."""

from dataclasses import replace

import pytest
import tiny
import torch

from tiprctl.evaluation import DIRECTIONS, Evaluation, Measurement, Reranked, rows, summaries
from tiprctl.metrics import RetrievalMetrics
from tiprctl.models.embedder import ModelOrigin
from tiprctl.reranking import Reranking


def measurement(model, mean_ap, *, trained_on="t", measured_on="m", **changes):
    config = tiny.recipe(**changes)
    metrics = RetrievalMetrics(
        recall={1: mean_ap, 5: 90.0, 10: 95.0}, mean_ap=mean_ap, mean_inp=0.0, queries=4, unmatched=1
    )
    origin = ModelOrigin(fingerprint=model, config=config, data_fingerprint=trained_on, selected_on="val")
    return Measurement(model, origin, "d", "d", measured_on, Evaluation("test", 2, 4, metrics, metrics))


def published(model):
    one = measurement(model, 5.0)
    return Measurement(model, ModelOrigin(fingerprint=model), "d", "d", "m", one.evaluation)


def test_runs_that_differ_in_their_seed_are_averaged():
    forward, backward = summaries([measurement("a", 10.0, seed=1), measurement("b", 20.0, seed=2)])
    assert (forward["direction"], backward["direction"]) == tuple(DIRECTIONS)
    assert forward["model"] == "mean of 2 synth runs"
    assert (forward["mAP"], forward["std"]["mAP"]) == (15.0, 7.07)


def test_the_first_ranking_and_the_one_made_again_are_averaged_each():
    runs = [measurement("a", 10.0, seed=1), measurement("b", 20.0, seed=2)]
    reranking = Reranking(torch.zeros(4, 2, dtype=torch.long), torch.zeros(4, 2), images=1, seconds=0.0)
    again = [
        replace(one, reranked=Reranked(reranking, replace(one.evaluation.text_to_image, mean_ap=mean_ap)))
        for one, mean_ap in zip(runs, (30.0, 50.0))
    ]
    assert [(row["direction"], row.get("rerank"), row["mAP"]) for row in summaries(again)] == [
        ("text_to_image", None, 15.0),
        ("text_to_image", 2, 40.0),
        ("image_to_text", None, 15.0),
    ]
    assert [row["mAP"] for row in rows(again[0])] == [10.0, 30.0, 10.0]


@pytest.mark.parametrize(
    "other",
    [
        measurement("b", 20.0, seed=1, objectives=[{"name": "itc"}, {"name": "triplet"}]),
        measurement("b", 20.0, seed=1, trained_on="other"),
        measurement("b", 20.0, seed=1, measured_on="other"),
        measurement("b", 20.0),
    ],
    ids=["other objectives", "trained on other data", "measured on other data", "another checkpoint of the run"],
)
def test_what_differs_in_more_or_less_than_the_seed_is_not_averaged(other):
    assert summaries([measurement("a", 10.0), other]) == []


def test_models_that_no_run_made_are_not_averaged():
    assert summaries([published("ViT-B-16/openai"), published("ViT-B-32/openai")]) == []


def test_a_row_names_direction_and_figures():
    forward, backward = rows(measurement("a", 12.346))
    assert (forward["direction"], forward["R@1"], forward["unmatched"]) == ("text_to_image", 12.35, 1)
    assert backward["direction"] == "image_to_text"
