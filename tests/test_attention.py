import pytest
import torch
from torch.nn import functional as F

from tiprctl.models.attention import dot_product_attention


def heads(dtype=torch.bfloat16, queries=7):
    """Queries (2, 3, Q, 8), keys and values (2, 3, 7, 8) that learn."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, queries, 8), (2, 3, 7, 8), (2, 3, 7, 8))
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def visible():
    return torch.arange(7) < torch.tensor([[7], [4]])


@pytest.mark.parametrize(
    ("queries", "options"), [(7, {}), (7, {"causal": True}), (7, {"visible": visible()}), (1, {"visible": visible()})]
)
def test_both_ways_give_the_same_values_and_gradients(queries, options):
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        inputs = [x.detach().to(dtype).requires_grad_() for x in heads(queries=queries)]
        mixed = dot_product_attention(*inputs, **options)
        assert mixed.dtype is dtype
        mixed.float().square().sum().backward()
        found.append([mixed.float(), *(x.grad.float() for x in inputs)])
    torch.testing.assert_close(*found, rtol=0.03, atol=0.03)


def test_bfloat16_on_the_cpu_leaves_pytorchs_slow_attention_alone(monkeypatch):
    monkeypatch.delattr(F, "scaled_dot_product_attention")
    assert dot_product_attention(*heads()).dtype is torch.bfloat16
    with pytest.raises(AttributeError):
        dot_product_attention(*heads(torch.float32))


def test_the_softmax_of_bfloat16_is_taken_in_float32(monkeypatch):
    seen, softmax = [], torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda x, **options: seen.append(x.dtype) or softmax(x, **options))
    dot_product_attention(*heads())
    assert seen == [torch.float32]
