"""Three ways of embedding an image's patches, forward and backward: a convolution, channels last, a matrix product.

python benchmarks/patch_embedding.py              # ViT-B/16 at 384 x 128, batches of 8
python benchmarks/patch_embedding.py --quick      # a tiny encoder
"""

from __future__ import annotations

import argparse
from functools import partial
from statistics import median

import torch
from _report import Report, parser, publish, survey, timed
from _step import TYPES
from torch import Tensor, nn
from torch.nn import functional as F

from tiprctl.models.clip import SIZES
from tiprctl.models.masking import patchify
from tiprctl.precision import autocast

TOLERANCE = 1e-4  # of the largest value, in full precision


def convolved(pixels: Tensor, conv: nn.Conv2d) -> Tensor:
    """Patches `(B, N, W)`, as the image tower embeds them."""
    return conv(pixels).flatten(2).transpose(1, 2)


def channels_last(pixels: Tensor, conv: nn.Conv2d) -> Tensor:
    """The same of images and weights whose channels lie side by side."""
    weight = conv.weight.contiguous(memory_format=torch.channels_last)
    images = pixels.contiguous(memory_format=torch.channels_last)
    return F.conv2d(images, weight, stride=conv.stride).flatten(2).transpose(1, 2)


def multiplied(pixels: Tensor, conv: nn.Conv2d) -> Tensor:
    """The same as a product of the unfolded patches, which must not overlap."""
    weight = conv.weight.permute(0, 2, 3, 1).flatten(1)
    return F.linear(patchify(pixels, conv.kernel_size[0]), weight)


WAYS = {"convolution (ours)": convolved, "channels last": channels_last, "matrix product": multiplied}


def both_ways(way: object, pixels: Tensor, conv: nn.Conv2d, precision: str) -> None:
    """Embed, and take the gradient of the weights."""
    conv.weight.grad = None
    with autocast(pixels.device, TYPES[precision]):
        embedded = way(pixels, conv)
    embedded.float().sum().backward()


def milliseconds(pixels: Tensor, conv: nn.Conv2d, precision: str, rounds: int) -> list[float]:
    """The median time of each way, taken in turn."""
    device = str(pixels.device)
    seconds = [
        [timed(partial(both_ways, way, pixels, conv, precision), device) for way in WAYS.values()]
        for _ in range(rounds + 1)
    ]
    return [1000 * median(times[1:]) for times in zip(*seconds)]


def options() -> argparse.Namespace:
    asked = parser(__doc__.splitlines()[0], quick="a tiny encoder")
    asked.add_argument("--batch", type=int, default=8, help="images at a time (default: 8)")
    asked.add_argument("--rounds", type=int, default=20, help="times each, in turn; the median counts (default: 20)")
    asked.add_argument("--threads", type=int, default=1)
    asked.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = asked.parse_args()
    if min(chosen.batch, chosen.rounds, chosen.threads) < 1:
        asked.error("every number is at least 1")
    return chosen


def main() -> int:
    chosen = options()
    torch.set_num_threads(chosen.threads)
    size = SIZES["tiny" if chosen.quick else "ViT-B-16"]
    conv = nn.Conv2d(3, size.vision_width, size.patch_size, size.stride, bias=False).to(chosen.device)
    pixels = torch.randn(chosen.batch, 3, *size.image_size, device=chosen.device)
    expected = convolved(pixels, conv)
    for name, way in WAYS.items():
        if (way(pixels, conv) - expected).abs().max() > TOLERANCE * expected.abs().max():
            raise SystemExit(f"{name} embeds other patches")
    machine = survey(chosen.threads, device=chosen.device, packages=("torch",))
    times = {precision: milliseconds(pixels, conv, precision, chosen.rounds) for precision in ("fp32", "bf16")}
    rows = [(name, *(f"{each[way]:.1f}" for each in times.values())) for way, name in enumerate(WAYS)]
    height, width = size.image_size
    report = Report(
        f"Milliseconds for the patches of {chosen.batch} images of {height} x {width}, forward and backward",
        ("", *times),
        rows,
        {"milliseconds": {name: {p: each[way] for p, each in times.items()} for way, name in enumerate(WAYS)}},
    )
    publish(report, machine, as_json=chosen.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
