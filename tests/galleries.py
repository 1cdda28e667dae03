"""Galleries in real processes: the program in a folder of its own, killed or held at a chosen moment.

Run as a script it is the program, with a `Moment`.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from tiprctl.gallery.keeping.store import GalleryStore

Rows = dict[str, dict[str, Any]]
"""Rows of a gallery by their paths."""
WIDTH, IMAGE_SIZE = 16, (16, 8)
BATCH = 8
"""Images a batch; each is committed by itself."""
NAMES = [f"cam_{'ab'[number % 2]}/{number:02}.png" for number in range(5 * BATCH)]
INDEX_FROM = 200
"""Rows from which a `Moment` can give a gallery an index."""
GALLERY = "gallery.lance"
EMBED = "tiprctl.exported:ExportedModel.embed_images"
PUT = "tiprctl.gallery.keeping.store:GalleryStore.put"
REMOVE = "tiprctl.gallery.keeping.store:GalleryStore.remove_unchanged"
UNPRIVILEGED = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
"""What runs a command so that file permissions hold for it, though it be the superuser's."""
_PATIENCE = 120
"""Seconds after which a process is taken to hang."""


@dataclass(frozen=True)
class Moment:
    """When a process is stopped.

    Attributes:
        at: a function, as `module:Class.method`. None is a moment that never comes.
        number: the call of the function, from 1.
        after: once the call is done, not before.
        file_in: once this folder of the gallery has gained or lost a file after the call has begun.
        then: whether the process is killed (SIGKILL), or waits until it is told to go on.
        indexed: whether the gallery has a vector index from `INDEX_FROM` rows on in this process.
        forgets: whether this process removes old versions at once, whoever reads them.
    """

    at: str | None = None
    number: int = 1
    after: bool = False
    file_in: str | None = None
    then: Literal["kill", "wait"] = "kill"
    indexed: bool = False
    forgets: bool = False

    def arm(self, line: socket.socket) -> None:
        """Let this process stop then, and commit each batch by itself; on the line it tells that it waits."""
        from tiprctl.gallery.filling import writing
        from tiprctl.gallery.keeping import upkeep
        from tiprctl.gallery.searching import calibration, finding, optimising

        writing.SECONDS_BETWEEN_COMMITS = 0.0
        if self.indexed:
            finding.EXACT_ROWS = optimising.EXACT_ROWS = INDEX_FROM
            calibration._QUERIES = 16
        if self.forgets:
            upkeep._KEPT = timedelta(0)
        if self.at is not None:
            self._arm_call(*self.at.split(":"), line)

    def _arm_call(self, module: str, name: str, line: socket.socket) -> None:
        *owners, attribute = name.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        original, calls = getattr(owner, attribute), []

        @functools.wraps(original)
        def stopped(*args: Any, **kwargs: Any) -> Any:
            calls.append(attribute)
            if len(calls) != self.number:
                return original(*args, **kwargs)
            if self.file_in is not None:
                return self._stopped_by_file(lambda: original(*args, **kwargs), line)
            if not self.after:
                self._stop(line)
            result = original(*args, **kwargs)
            if self.after:
                self._stop(line)
            return result

        setattr(owner, attribute, stopped)

    def _stopped_by_file(self, call: Callable[[], Any], line: socket.socket) -> Any:
        folder = Path(GALLERY, self.file_in)
        before = _names(folder)

        def watch() -> None:
            while _names(folder) == before:
                pass
            self._stop(line)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        result = call()
        # The call may have ended before the watcher has seen the change.
        watcher.join(timeout=10)
        return result

    def _stop(self, line: socket.socket) -> None:
        if self.then == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        line.send(b".")
        line.recv(1)


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()


@dataclass(frozen=True)
class Done:
    """What a process printed, and its exit code; below 0 is a signal's number."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        """The JSON on stdout, of a process that ended well."""
        assert self.returncode == 0, self.stderr
        return json.loads(self.stdout)


@dataclass(frozen=True)
class Started:
    """A process under way, and the line on which it tells that it waits."""

    process: subprocess.Popen[str]
    line: socket.socket

    def reached(self) -> None:
        """Wait until it waits at its moment."""
        if not self.line.recv(1):
            raise AssertionError(f"The process has ended without coming to its moment: {self.end()}")

    def end(self) -> Done:
        """Let it go on to its end."""
        with suppress(BrokenPipeError):
            self.line.send(b".")
        try:
            stdout, stderr = self.process.communicate(timeout=_PATIENCE)
        finally:
            self.process.kill()
            self.line.close()
        return Done(self.process.returncode, stdout, stderr)


@dataclass(frozen=True)
class Workplace:
    """A folder in which the program runs, with a model."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def gallery(self) -> Path:
        return self.folder / GALLERY

    def run(self, *arguments: str, at: Moment | None = None, **options: Any) -> Done:
        """What the program does with these arguments."""
        return self.start(*arguments, at=at, **options).end()

    def start(self, *arguments: str, at: Moment | None = None, prefix: Sequence[str] = (), **options: Any) -> Started:
        """Begin it; `prefix` is a command that runs it, `options` are of `subprocess.Popen`."""
        line, theirs = socket.socketpair()
        program = [__file__, json.dumps(asdict(at)), str(theirs.fileno())] if at else ["-m", "tiprctl"]
        own = {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "XDG_CACHE_HOME": str(self.folder / "cache")}
        with theirs:
            process = subprocess.Popen(
                [*prefix, sys.executable, *program, *arguments],
                cwd=self.folder,
                env=os.environ | own | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                text=True,
                errors="surrogateescape",
                **options,
            )
        line.settimeout(_PATIENCE)
        return Started(process, line)

    def index(self, command: str, *arguments: str, at: Moment | None = None, **options: Any) -> Done:
        """`tiprctl index` on the gallery, with `--json`."""
        return self.run("index", command, *arguments, *self._named(command), "--json", at=at, **options)

    def start_index(self, command: str, *arguments: str, at: Moment | None = None, **options: Any) -> Started:
        return self.start("index", command, *arguments, *self._named(command), "--json", at=at, **options)

    def query(self, sentence: str, *arguments: str, **options: Any) -> Done:
        """`tiprctl query` of the gallery."""
        return self.run("query", sentence, "--gallery", GALLERY, *arguments, **options)

    def _named(self, command: str) -> list[str]:
        embeds = ["--model", "model", "--batch-size", str(BATCH)] if command in ("add", "sync") else []
        return ["--gallery", GALLERY, *embeds]

    def store(self, gallery: str = GALLERY) -> GalleryStore:
        """The newest version of the gallery."""
        from tiprctl.gallery.keeping.store import GalleryStore

        return GalleryStore.open(self.folder / gallery)

    def rows(self, gallery: str = GALLERY) -> Rows:
        """The gallery's rows by their paths, which are there once each."""
        return rows_of(self.store(gallery))


def rows_of(store: GalleryStore) -> Rows:
    """The rows of a version by their paths, which are there once each."""
    rows = store.dataset.to_table().to_pylist()
    by_path = {row["path"]: row for row in rows}
    assert len(by_path) == len(rows), "a path has two rows"
    return by_path


def same_rows(rows: Rows, others: Rows) -> None:
    """Fail unless both have the same rows; vectors may differ by rounding."""
    assert rows.keys() == others.keys()
    for path, row in rows.items():
        other = others[path]
        np.testing.assert_allclose(row["vector"], other["vector"], atol=1e-6)
        assert {**row, "vector": None} == {**other, "vector": None}


def recall(store: GalleryStore, rows: Rows, top: int = 10) -> float:
    """The share of the best rows that `find` finds for some queries; fails where an answer is not whole or not true."""
    from tiprctl.gallery.searching.finding import find

    paths, vectors = list(rows), np.array([row["vector"] for row in rows.values()])
    queries = np.random.default_rng(1).standard_normal((20, WIDTH))
    queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
    found_of_best = 0
    for query, found in zip(queries, find(store, queries, top)):
        scores = dict(zip(paths, vectors @ query))
        best = sorted(scores, key=scores.get, reverse=True)[:top]
        hits = found.rows["path"].to_pylist()
        assert len(set(hits)) == len(best)
        np.testing.assert_allclose(found.scores, [scores[path] for path in hits], atol=1e-6)
        found_of_best += len(set(hits) & set(best))
    return found_of_best / (len(queries) * min(top, len(rows)))


def archive(folder: Path) -> Workplace:
    """A folder of the crops `NAMES` and a gallery that was made of it undisturbed."""
    place = Workplace(folder)
    write_model(folder / "model")
    paint(folder / "crops", NAMES)
    assert place.index("add", "crops").document["added"] == len(NAMES)
    return place


def many(folder: Path) -> Workplace:
    """A gallery in small files, not so many that they are joined yet, of more rows than `INDEX_FROM`; without an index."""
    place = Workplace(folder)
    write_model(folder / "model")
    paint(folder / "crops", [f"{number}.png" for number in range(INDEX_FROM + 1)])
    assert place.index("add", "crops", at=Moment()).document["added"] == INDEX_FROM + 1
    return place


def paint(folder: Path, names: Sequence[str], seed: int = 0) -> None:
    """Images of noise of these names, each another one."""
    for number, name in enumerate(names):
        generator = np.random.default_rng([seed, number])
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (*IMAGE_SIZE, 3), np.uint8)).save(file, "png")


def write_model(folder: Path) -> None:
    """An export of the smallest kind: it projects pixels, and adds up vectors of token ids."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from tiprctl.exported import CARD, FORMAT, IMAGE, PIXELS, TEXT, TOKEN_IDS, VECTORS

    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    length = int(np.prod(IMAGE_SIZE)) * 3
    words = 64
    graphs = {
        IMAGE: (
            [
                helper.make_node("Cast", [PIXELS], ["float"], to=TensorProto.FLOAT),
                helper.make_node("Sub", ["float", "grey"], ["centred"]),
                helper.make_node("Flatten", ["centred"], ["flat"]),
                helper.make_node("MatMul", ["flat", "weights"], ["projected"]),
            ],
            helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, ["batch", *IMAGE_SIZE, 3]),
            {"grey": np.float32(127.5), "weights": generator.standard_normal((length, WIDTH)).astype(np.float32)},
        ),
        TEXT: (
            [
                helper.make_node("Mod", [TOKEN_IDS, "words"], ["word"]),
                helper.make_node("Gather", ["weights", "word"], ["each"]),
                helper.make_node("ReduceSum", ["each", "axis"], ["projected"], keepdims=0),
            ],
            helper.make_tensor_value_info(TOKEN_IDS, TensorProto.INT64, ["batch", "length"]),
            {
                "words": np.int64(words),
                "axis": np.array([1], np.int64),
                "weights": generator.standard_normal((words, WIDTH)).astype(np.float32),
            },
        ),
    }
    for name, (nodes, given, weights) in graphs.items():
        nodes.append(helper.make_node("LpNormalization", ["projected"], [VECTORS], axis=-1, p=2))
        made = helper.make_tensor_value_info(VECTORS, TensorProto.FLOAT, ["batch", WIDTH])
        tensors = [numpy_helper.from_array(np.asarray(value), key) for key, value in weights.items()]
        graph = helper.make_graph(nodes, "tower", [given], [made], tensors)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / name)
    card = {
        "format": FORMAT,
        "fingerprint": "tiny",
        "width": WIDTH,
        "image_size": IMAGE_SIZE,
        "precision": "float32",
        "description": "a tiny model",
        "source": "model",
        "weights": None,
        "tokenizer": {"kind": "clip"},
        "files": {name: (folder / name).stat().st_size for name in graphs},
    }
    (folder / CARD).write_text(json.dumps(card))


if __name__ == "__main__":
    from tiprctl.cli import main

    Moment(**json.loads(sys.argv.pop(1))).arm(socket.socket(fileno=int(sys.argv.pop(1))))
    main()
