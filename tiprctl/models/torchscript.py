"""TorchScript archives read as what they are, a zip of tensors and a pickle, without running anything from them."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tiprctl.errors import InputError


def is_torchscript(path: Path) -> bool:
    """Whether the file is a zip with the parts of a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers of the module that a TorchScript archive holds, by their dotted names.

    Raises:
        InputError: the archive names something that would run code. A damaged one raises what zip and pickle raise.
    """
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/constants.pkl")).partition("/")[0]
        with archive.open(f"{root}/data.pkl") as file:
            module = _ArchiveUnpickler(file, archive, root, path).load()
    return dict(_named_tensors(module))


class _Inert:
    """Stands in for a class of the archive: keeps its objects' attributes and runs nothing."""

    def __init__(self, *_args: Any):
        self.attributes: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = state


def _named_tensors(node: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(node, Tensor):
        yield name, node
    elif isinstance(node, _Inert) and isinstance(node.attributes, dict):
        for key, value in node.attributes.items():
            yield from _named_tensors(value, f"{name}.{key}" if name else str(key))


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *_rest: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _first(value: Any, *_rest: Any) -> Any:
    return value


CALLABLES: dict[tuple[str, str], Callable] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch.jit._pickle", "build_boollist"): _first,
    ("torch.jit._pickle", "build_doublelist"): _first,
    ("torch.jit._pickle", "build_intlist"): _first,
    ("torch.jit._pickle", "build_tensorlist"): _first,
    ("torch.jit._pickle", "restore_type_tag"): _first,
}
"""All that an archive's pickle may call, and what stands in for it."""
STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
}


class _ArchiveUnpickler(pickle.Unpickler):
    """Reads an archive's `data.pkl`; refuses every name beyond `CALLABLES`, `STORAGES` and its own classes."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str, path: Path):
        super().__init__(file)
        self._archive, self._root, self._path = archive, root, path
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Inert
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) in CALLABLES:
            return CALLABLES[module, name]
        raise refusal(f"{module}.{name}", self._path)

    def persistent_load(self, reference: Any) -> Tensor:
        """The storage of `("storage", type, key, device, length)`, as a flat tensor."""
        _, dtype, key, *_ = reference
        if key not in self._storages:
            content = bytearray(self._archive.read(f"{self._root}/data/{key}"))
            self._storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self._storages[key]


def refusal(name: str, path: Path) -> InputError:
    """The error for a file whose pickle asks for `name`."""
    return InputError(
        f"The checkpoint would run code on loading ({name}); it was not loaded",
        where=path,
        remedy="Do not trust it; get the weights as safetensors or as a plain state dict.",
    )
