import pytest
import torch

from tiprctl.errors import UsageError
from tiprctl.precision import amp_dtype, autocast, find_device

CPU = torch.device("cpu")


def test_modes_name_their_types():
    assert [amp_dtype(mode, CPU) for mode in ("bf16", "fp16", "off", "auto")] == [
        torch.bfloat16,
        torch.float16,
        None,
        None,
    ]


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_takes_what_the_gpu_computes_natively(monkeypatch, native, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert amp_dtype("auto", torch.device("cuda")) is expected


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_autocast_changes_matrix_products_only_when_asked(dtype):
    with autocast(CPU, dtype):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (dtype or torch.float32)


def test_a_device_that_is_not_there_is_explained():
    assert find_device("cpu") == CPU
    for name in ("tpu9", "cuda:77"):
        with pytest.raises(UsageError, match=rf"'{name}' cannot be used[\s\S]*--device"):
            find_device(name)
