"""An ablation in its folder: each training an ordinary run, each result a row, nothing done twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from tiprctl.ablation.cost import Cost, measure_costs
from tiprctl.ablation.parts import label
from tiprctl.ablation.plan import START, Plan, Training, relative
from tiprctl.ablation.summary import Row
from tiprctl.config import TrainConfig, from_dict
from tiprctl.data.captions import captions_origin
from tiprctl.data.manifest import Manifest
from tiprctl.errors import UsageError
from tiprctl.evaluation import EvaluationData, evaluate, figures
from tiprctl.files import check_writable
from tiprctl.progress import Listener
from tiprctl.runs import LAST, Run, read_json, read_records, write_json, write_records
from tiprctl.sources import load_embedder
from tiprctl.training import Trainer, whole_steps

ABLATION, ROWS = "ablation.json", "rows.jsonl"
SPLIT = "test"
"""The split that the figures are of; each training chooses its epoch as its recipe says."""


class Ablation:
    """A plan, carried out in a folder; one that was begun there is gone on with.

    Raises:
        UsageError: the folder holds an ablation with other settings (they are named), or something else.
        InputError: the folder cannot be written, the data set has no test split, or pruned captions are missing.
    """

    def __init__(
        self, plan: Plan, manifest: Manifest, folder: Path, *, device: torch.device, workers: int | None = None
    ):
        self.plan = plan
        self.manifest = manifest
        self.folder = folder
        self.device = device
        self.workers = workers
        self.test = manifest.split(SPLIT)
        self.file = folder / ABLATION
        self._check_folder()

    @cached_property
    def costs(self) -> dict[str, Cost]:
        """What a step of each subset costs, by the subset's name: measured once, then kept with the settings.

        The subsets are made as they are going to be trained: what cannot be started from or trained is found here.
        """
        if self.file.is_file():
            return {name: from_dict(Cost, values) for name, values in self._known()["costs"].items()}
        costs = measure_costs({label(parts): self._rehearsal(self.plan.subset(parts)) for parts in self.plan.subsets})
        kept = {name: asdict(cost) for name, cost in costs.items()}
        write_json(self.file, {"settings": self._settings(), "costs": kept})
        return costs

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    @cached_property
    def ratios(self) -> dict[str, float]:
        """The cost of a step as a multiple of the plain one's, by the subset's name."""
        return relative({name: cost.seconds for name, cost in self.costs.items()})

    @cached_property
    def trainings(self) -> list[Training]:
        """All that belongs to the plan, finished or not, in the order in which it is trained."""
        return self.plan.trainings(self.folder, self.ratios)

    @property
    def rows(self) -> list[Row]:
        """What is known of the plan's trainings, from the disk."""
        planned = {training.name: training for training in self.trainings}
        return [row for name, row in self._rows().items() if name in planned]

    def is_finished(self, training: Training) -> bool:
        trained = Run(self.folder / training.name).result is not None
        return trained and (training.budget == START or training.name in self._rows())

    def seconds(self, training: Training) -> float:
        """How long a training is going to take, by the measured cost of a step; without its evaluations."""
        return self._steps(training) * self.costs[label(training.parts)].seconds

    def train(self, training: Training, listener: Listener) -> bool:
        """Train, or go on with, one of the trainings; False on Ctrl-C, when what was trained is saved."""
        folder = self.folder / training.name
        if Run(folder).result is not None:
            return True
        return not self._trainer(training.config, folder, listener).run().interrupted

    def measure(self, training: Training) -> Row:
        """The figures of a finished training, kept as a row of the table; its run keeps the weights of its best epoch."""
        embedder = load_embedder(self.folder / training.name, device=self.device)
        result = Run(self.folder / training.name).result
        row = Row(
            seed=training.seed,
            budget=training.budget,
            parts=training.parts,
            epochs=self._steps(training) / self.costs[label(training.parts)].steps,
            epoch=result["epoch"],
            selected_on=result["selected_on"],
            split=SPLIT,
            figures=figures(evaluate(embedder, self._test_data).text_to_image),
        )
        rows = self._rows() | {training.name: row}
        write_records(self.folder / ROWS, map(asdict, rows.values()))
        # Nothing goes on from here, and with the optimiser's state this is most of what a run takes on disk.
        (self.folder / training.name / LAST).unlink(missing_ok=True)
        return row

    @cached_property
    def _test_data(self) -> EvaluationData:
        return EvaluationData(self.test, self.plan.recipe.model.image_size, workers=self.workers)

    def _trainer(self, config: TrainConfig, folder: Path, listener: Listener | None = None) -> Trainer:
        return Trainer(config, self.manifest, folder, device=self.device, workers=self.workers, listener=listener)

    def _rehearsal(self, config: TrainConfig) -> Trainer:
        """A training that is only to be timed, and never saved."""
        return self._trainer(config, self.folder / "rehearsal")

    def _steps(self, training: Training) -> int:
        return whole_steps(training.config.epochs, self.costs[label(training.parts)].steps)

    def _rows(self) -> dict[str, Row]:
        rows = [from_dict(Row, line, where=str(self.folder / ROWS)) for line in read_records(self.folder / ROWS)]
        return {Training(row.seed, row.budget, row.parts, self.plan.recipe).name: row for row in rows}

    def _settings(self) -> dict[str, Any]:
        """What all that is compared here has in common."""
        manifest = self.manifest
        return {
            "data": manifest.dataset,
            "data_fingerprint": manifest.fingerprint,
            "captions": captions_origin(manifest, self.plan.recipe.captions),
            "device": self.device_name,
            **self.plan.settings(),
        }

    def _known(self) -> Mapping[str, Any]:
        return read_json(self.file, "Name another --output.", {"settings", "costs"})

    def _check_folder(self) -> None:
        asked = self._settings()
        if self.file.is_file():
            known = self._known()["settings"]
            differing = [name for name in asked if name in known and known[name] != asked[name]]
            if differing:
                raise UsageError(
                    f"The ablation in this folder was begun with other settings: {', '.join(differing)}",
                    where=self.folder,
                    remedy="Give the same ones to go on with it, or name another --output.",
                )
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise UsageError("The folder holds something else", where=self.folder, remedy="Name another --output.")
        check_writable(self.file)
