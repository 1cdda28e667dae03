"""`tiprctl ablate`: which parts of a method help, and what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tiprctl.cli import experiments
from tiprctl.cli.experiments import Budget, Budgets, Epochs, Seeds, StartEpochs
from tiprctl.cli.options import Data, Device, Json, Root, Settings, Workers


def ablate(
    data: Data = None,
    recipe: Annotated[str, typer.Option(help="The method whose parts are compared.")] = "sen",
    parts: Annotated[
        str, typer.Option(help="Objectives, prune (pruned captions) and mask (masked captions), separated by commas.")
    ] = "tir,triplet,prune",
    seeds: Seeds = 3,
    start_epochs: StartEpochs = None,
    epochs: Epochs = None,
    budget: Budgets = Budget.both,
    output: Annotated[
        Path | None, typer.Option(help="The ablation's folder.", show_default="runs/<data>-<recipe>-ablation")
    ] = None,
    set: Settings = None,
    json: Json = False,
    root: Root = None,
    workers: Workers = None,
    device: Device = None,
) -> None:
    """Train every subset of a method's parts from the same start, which has none of them, and compare in pairs.

    Stopped with Ctrl-C, it goes on when the same command is given again.

    \b
    tiprctl ablate
    tiprctl ablate synth-pedes --recipe sen --parts tir,triplet,prune --seeds 3
    tiprctl ablate cuhk-pedes --recipe irra --parts mlm --budget steps
    tiprctl ablate --start-epochs 4 --epochs 1.5 --set tir.weight=5 --json
    """
    from tiprctl.ablation.parts import OPTION, parse_parts, plan_subsets, with_all
    from tiprctl.recipes import check_names, find_recipe

    chosen = parse_parts(parts)
    check_names(recipe, None, None)

    from tiprctl.data.manifest import find_manifest
    from tiprctl.runs import RUNS
    from tiprctl.settings import resolve

    manifest = find_manifest(data, root)
    fixed = {"recipe": "--recipe", "objectives": OPTION, "seed": "--seeds"}
    plan = plan_subsets(
        resolve(with_all(find_recipe(recipe, manifest.dataset), chosen), set or [], fixed=fixed),
        chosen,
        seeds=seeds,
        start_epochs=start_epochs,
        epochs=epochs,
        budgets=budget.asked,
    )
    experiments.run(
        plan,
        manifest,
        output or RUNS / f"{manifest.title}-{recipe}-ablation",
        about=f"recipe {recipe}, {len(plan.contenders)} subsets of its parts",
        asked={"recipe": recipe, "parts": chosen},
        json=json,
        workers=workers,
        device=device,
    )
