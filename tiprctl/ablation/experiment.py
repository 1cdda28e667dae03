"""An experiment in its folder: each training an ordinary run, each result a row, nothing done twice."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from tiprctl.ablation.cost import Cost, ratios
from tiprctl.ablation.measuring import REHEARSAL, measure_costs, peak_memory
from tiprctl.ablation.plan import START, Plan, Training
from tiprctl.ablation.summary import Row, read_row
from tiprctl.config import TrainConfig, from_dict, to_dict
from tiprctl.data.captions import captions_origin
from tiprctl.data.manifest import Manifest
from tiprctl.errors import TiprError, UsageError
from tiprctl.evaluation import EvaluationData, evaluate, figures
from tiprctl.files import check_writable
from tiprctl.meter import Meter, unseen
from tiprctl.progress import Listener
from tiprctl.runs import LAST, Run, read_json, read_records, write_json, write_records
from tiprctl.sources import load_embedder
from tiprctl.training import Trainer, whole_steps

ROWS = "rows.jsonl"
SPLIT = "test"
"""The split that the figures are of; each training chooses its epoch as its recipe says."""


class Experiment:
    """A plan, carried out in a folder; one that was begun there is gone on with.

    Args:
        meter: what is told how far the measuring of the costs has come.

    Raises:
        UsageError: the folder holds an experiment with other settings (they are named), or something else.
        InputError: the folder cannot be written, the data set has no test split, or pruned captions are missing.
    """

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        folder: Path,
        *,
        device: torch.device,
        workers: int | None = None,
        meter: Meter = unseen,
    ):
        self.plan = plan
        self.manifest = manifest
        self.folder = folder
        self.device = device
        self.workers = workers
        self.meter = meter
        self.test = manifest.split(SPLIT)
        self.file = folder / f"{plan.kind}.json"
        self._check_folder()

    @cached_property
    def costs(self) -> dict[str, Cost]:
        """What a step of each contender costs, by its name: measured once, then kept with the settings.

        The contenders are made as they are going to be trained: what cannot be started from or trained is found here,
        before the first one is measured. An interruption keeps nothing.

        Raises:
            TiprError: one of them cannot be made; the place names it.
        """
        if self.file.is_file():
            return {name: from_dict(Cost, values) for name, values in self._known()["costs"].items()}
        rehearsals = {contender.name: self.plan.rehearsal(contender) for contender in self.plan.contenders}
        memory = self._memories(rehearsals) if self.plan.memory else {}
        costs = measure_costs(dict(self._made(rehearsals, self.device)), self.meter)
        costs = {name: replace(cost, memory=memory.get(name)) for name, cost in costs.items()}
        write_json(self.file, {"settings": to_dict(self._settings()), "costs": to_dict(costs)})
        return costs

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    @cached_property
    def ratios(self) -> dict[str, float]:
        """The cost of a step as a multiple of the first contender's, by name."""
        return ratios(self.costs)

    @cached_property
    def trainings(self) -> list[Training]:
        """All that belongs to the plan, finished or not, in the order in which it is trained."""
        return self.plan.trainings(self.folder, self.costs)

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
        return self._steps(training) * self._cost(training).seconds

    def train(self, training: Training, listener: Listener) -> bool:
        """Train, or go on with, one of the trainings; False on Ctrl-C, when what was trained is saved."""
        folder = self.folder / training.name
        if Run(folder).result is not None:
            return True
        return not self._trainer(training.config, folder, listener).run().interrupted

    def measure(self, training: Training) -> Row:
        """The figures of a finished training, kept as a row of the table; its run keeps the best epoch's weights."""
        embedder = load_embedder(self.folder / training.name, device=self.device)
        result = Run(self.folder / training.name).result
        row = Row(
            seed=training.seed,
            budget=training.budget,
            contender=training.contender,
            epochs=self._steps(training) / self._cost(training).steps,
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
        return EvaluationData(self.test, self.plan.start.model.image_size, workers=self.workers)

    def _trainer(self, config: TrainConfig, folder: Path, listener: Listener | None = None) -> Trainer:
        return Trainer(config, self.manifest, folder, device=self.device, workers=self.workers, listener=listener)

    def _made(
        self, rehearsals: Mapping[str, TrainConfig], device: torch.device, doing: str = "Making"
    ) -> Iterator[tuple[str, Trainer]]:
        """The trainings of these contenders, by name, made one by one on a device."""
        kind = f"{self.plan.compared}s"
        with self.meter(f"{doing} the {kind}", len(rehearsals), kind) as advance:
            for name, config in rehearsals.items():
                try:
                    yield name, Trainer(config, self.manifest, REHEARSAL, device=device, workers=self.workers)
                except TiprError as error:
                    error.where = ": ".join(filter(None, (f"{self.plan.compared} {name}", error.where)))
                    raise
                advance(1)

    def _memories(self, rehearsals: Mapping[str, TrainConfig]) -> dict[str, int | None]:
        """The peak memory of each contender, by name; measured before this process takes any of a CUDA device's."""
        # Before any is measured, each is made once, to see that it can be; one at a time, since none is needed yet.
        deque(self._made(rehearsals, torch.device("cpu"), "Trying"), maxlen=0)
        memories = {}
        for name, config in rehearsals.items():
            with self.meter(f"Memory of {name}", None, "steps"):
                memories[name] = peak_memory(config, self.manifest, device=self.device, workers=self.workers)
        return memories

    def _cost(self, training: Training) -> Cost:
        """The cost of a step; a start, whose own is not measured, is taken to cost what the first contender does."""
        return self.costs[training.contender or self.plan.first]

    def _steps(self, training: Training) -> int:
        return whole_steps(training.config.epochs, self._cost(training).steps)

    def _rows(self) -> dict[str, Row]:
        rows = [read_row(line, str(self.folder / ROWS)) for line in read_records(self.folder / ROWS)]
        return {row.training: row for row in rows}

    def _settings(self) -> dict[str, Any]:
        """What all that is compared here has in common; more seeds and budgets may be asked for later."""
        manifest = self.manifest
        origins = (captions_origin(manifest, contender.config.captions) for contender in self.plan.contenders)
        return {
            "data": manifest.dataset,
            "data_fingerprint": manifest.fingerprint,
            "captions": next(filter(None, origins), None),
            "device": self.device_name,
            **self.plan.settings,
            "start_epochs": self.plan.start_epochs,
            "epochs": self.plan.epochs,
        }

    def _known(self) -> Mapping[str, Any]:
        return read_json(self.file, "Name another --output.", {"settings", "costs"})

    def _check_folder(self) -> None:
        asked = self._settings()
        if self.file.is_file():
            known = self._known()["settings"]
            differing = [
                _difference(name, known[name], asked[name])
                for name in asked
                if name in known and not self._agree(known[name], asked[name])
            ]
            if differing:
                raise UsageError(
                    f"The {self.plan.kind} in this folder was begun with other settings: {'; '.join(differing)}",
                    where=self.folder,
                    remedy="Give the same ones to go on with it, or name another --output.",
                )
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise UsageError("The folder holds something else", where=self.folder, remedy="Name another --output.")
        check_writable(self.file)

    def _agree(self, known: Any, asked: Any) -> bool:
        """Whether a setting is the one that was kept; an older version's configuration lacks what has come since."""
        if isinstance(asked, TrainConfig):
            known = to_dict(from_dict(TrainConfig, known, where=str(self.file)))
        return known == to_dict(asked)


def _difference(name: str, known: Any, asked: Any) -> str:
    """What a setting was and is to be, where it is an option that is quickly told; else its name."""
    if isinstance(asked, list):
        known, asked = ",".join(known), ",".join(asked)
    elif not isinstance(asked, int | float):
        return name
    return f"--{name.replace('_', '-')} {known} there, {asked} here"
