"""`tiprctl compare`: whole methods side by side, and what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tiprctl.cli import experiments
from tiprctl.cli.experiments import Budget, Budgets, Epochs, Seeds, StartEpochs
from tiprctl.cli.options import Data, Device, Json, Root, Settings, Workers


def compare(
    data: Data = None,
    recipes: Annotated[
        str, typer.Option(help="The methods, separated by commas; the others are compared with the first.")
    ] = "clip,irra,sen,cfine,scvd",
    seeds: Seeds = 3,
    start_epochs: StartEpochs = None,
    epochs: Epochs = None,
    budget: Budgets = Budget.both,
    output: Annotated[
        Path | None, typer.Option(help="The comparison's folder.", show_default="runs/<data>-comparison")
    ] = None,
    set: Settings = None,
    json: Json = False,
    root: Root = None,
    workers: Workers = None,
    device: Device = None,
) -> None:
    """Train whole methods from the same start, of recipe clip, and compare in pairs what they find and what they cost.

    Stopped with Ctrl-C, it goes on when the same command is given again.

    On photographs cfine has another input and batch size than the others: --set gives the same to all, as below.

    \b
    tiprctl compare
    tiprctl compare synth-pedes --recipes clip,irra,sen --seeds 3
    tiprctl compare cuhk-pedes --recipes irra,sen --budget steps
    tiprctl compare --set batch_size=128 --set 'model.image_size=[384,128]'
    tiprctl compare --start-epochs 4 --epochs 1.5 --set batch_size=32 --json
    """
    from tiprctl.ablation.methods import START_RECIPE, parse_recipes, plan_recipes
    from tiprctl.recipes import find_recipe

    names = parse_recipes(recipes)

    from tiprctl.ablation.settings import resolve_all
    from tiprctl.data.manifest import find_manifest
    from tiprctl.runs import RUNS

    manifest = find_manifest(data, root)
    found = {name: find_recipe(name, manifest.dataset) for name in (*names, START_RECIPE)}
    resolved = resolve_all(found, set or [])
    plan = plan_recipes(
        {name: resolved[name] for name in names},
        resolved[START_RECIPE],
        seeds=seeds,
        start_epochs=start_epochs,
        epochs=epochs,
        budgets=budget.asked,
    )
    experiments.run(
        plan,
        manifest,
        output or RUNS / f"{manifest.title}-comparison",
        about=f"recipes {', '.join(names)}",
        asked={"recipes": names},
        json=json,
        workers=workers,
        device=device,
    )
