"""An exported model: two ONNX graphs and a card that describes them, run by onnxruntime without torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tiprctl.cores import cores
from tiprctl.errors import InputError
from tiprctl.runs import read_json
from tiprctl.tokenizer import Tokenizer, default_tokenizer

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from tiprctl.precision import Precision

FORMAT = 1
CARD, TEXT, IMAGE = "export.json", "text.onnx", "image.onnx"
DATA_SUFFIX = ".data"
"""What the file of a graph's weights ends in. They lie apart so that they are mapped into memory, not read."""
TOKEN_IDS, PIXELS, VECTORS = "token_ids", "pixels", "vectors"
"""The names of the graphs' inputs and of their output."""
GPU_PROVIDER = "CUDAExecutionProvider"
REMEDY = "Export the model again: tiprctl export."

_TEXTS_TOGETHER = 256
_KEYS = {"fingerprint", "width", "image_size", "precision", "description", "source", "weights", "tokenizer", "files"}


class ExportedModel:
    """A `VectorModel` that onnxruntime runs; each graph is loaded when it is first asked for.

    On the CPU, or where `gpu` is True and onnxruntime has it, on CUDA.

    Args:
        source: how the model is named here; without it, as it was when it was exported.

    Raises:
        InputError: the folder holds no export, a damaged one, or one of a newer format.
    """

    def __init__(self, folder: Path, *, gpu: bool = False, source: str | None = None):
        self.folder = folder
        self.card = read_card(folder)
        self.width: int = self.card["width"]
        self.image_size: tuple[int, int] = tuple(self.card["image_size"])
        self.source: str = source or self.card["source"]
        self._gpu = gpu
        self._sessions: dict[str, InferenceSession] = {}

    @property
    def description(self) -> str:
        """Which model it is."""
        return f"{self.card['description']}, exported ({self.precision})"

    @property
    def fingerprint(self) -> str:
        """That of the model that was exported: the vectors are the same but for rounding."""
        return self.card["fingerprint"]

    @property
    def precision(self) -> Precision:
        """What it computes in."""
        return self.card["precision"]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """What makes the token ids that it reads."""
        about = self.card["tokenizer"]
        if about["kind"] == "clip":
            return default_tokenizer()
        from tiprctl.wordpiece import WordPieceTokenizer

        return WordPieceTokenizer(about["vocabulary"], about["context_length"], where=self.folder / CARD)

    def embed_images(self, pixels: np.ndarray) -> np.ndarray:
        """Images `(B, H, W, 3)` uint8 of `image_size` to float32 `(B, width)`, rows of unit length."""
        return self.run(IMAGE, pixels)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Sentences to float32 `(B, width)`, rows of unit length."""
        parts = [np.empty((0, self.width), np.float32)]
        for start in range(0, len(texts), _TEXTS_TOGETHER):
            token_ids = self.tokenizer(texts[start : start + _TEXTS_TOGETHER])
            parts.append(self.run(TEXT, token_ids))
        return np.concatenate(parts)

    def run(self, name: str, given: np.ndarray) -> np.ndarray:
        """What the graph of that name makes of its one input: unit vectors `(B, width)`, float32.

        Raises:
            InputError: the graph is missing or damaged.
        """
        if name not in self._sessions:
            self._sessions[name] = self._session(name)
        session = self._sessions[name]
        (vectors,) = session.run([VECTORS], {session.get_inputs()[0].name: given})
        return vectors

    def _session(self, name: str) -> InferenceSession:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cores()
        options.log_severity_level = 3
        # Threads that wait for work by spinning would take the cores from those that decode and search.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if name == TEXT:
            # Packed weights multiply one sentence a little faster, and take longer to pack than to be mapped and used.
            options.add_session_config_entry("session.disable_prepacking", "1")
        wanted = [GPU_PROVIDER] if self._gpu and knows_gpu() else []
        try:
            return onnxruntime.InferenceSession(self.folder / name, options, [*wanted, "CPUExecutionProvider"])
        except (
            state.Fail,
            state.InvalidArgument,
            state.InvalidGraph,
            state.InvalidProtobuf,
            state.NoSuchFile,
        ) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"The export is damaged: {reason}", where=self.folder / name, remedy=REMEDY) from error


def knows_gpu() -> bool:
    """Whether the installed onnxruntime computes on CUDA."""
    from onnxruntime import get_available_providers

    return GPU_PROVIDER in get_available_providers()


def read_card(folder: Path) -> dict[str, Any]:
    """What an export says of itself, once all its files have been found to be as long as they were written.

    Raises:
        InputError: the folder holds no export, a damaged one, or one of a newer format.
    """
    file = folder / CARD
    card = read_json(file, REMEDY, {"format"})
    if not isinstance(card["format"], int) or card["format"] > FORMAT:
        raise InputError(
            f"The export has format {card['format']}, newer than this program's {FORMAT}",
            where=file,
            remedy=f"Upgrade tiprctl. {REMEDY}",
        )
    card = read_json(file, REMEDY, _KEYS)
    for name, size in card["files"].items():
        part = folder / name
        if not part.is_file() or part.stat().st_size != size:
            raise InputError("The export is damaged: this file is missing or not whole", where=part, remedy=REMEDY)
    return card
