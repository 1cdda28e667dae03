"""CLIP's two towers (Radford et al., 2021), ported by hand: pixels or token ids to tokens of one embedding space.

Parameters carry the names of OpenAI's state dict. What differs from OpenAI's code: every token comes out, not only the
global one; any image height and width, and any stride up to the patch size; a masked view runs on its visible patches
only; batch-first; the temperature belongs to the losses.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tiprctl.errors import UsageError, unknown_name
from tiprctl.models.attention import dot_product_attention
from tiprctl.models.tokens import Tokens, caption_masks

POSITION_STD = 0.02
HEAD_WIDTH = 64
"""How wide the attention heads of all published sizes are."""
QUICK_GELU_SUFFIX = "-quickgelu"


@dataclass(frozen=True)
class ClipConfig:
    """The sizes of a CLIP.

    Attributes:
        image_size: height and width in pixels.
        stride: pixels between neighbouring patches; smaller than `patch_size` they overlap.
        quick_gelu: `x * sigmoid(1.702 x)` as in OpenAI's weights, else the exact GELU.
        text_tower: False for the image tower alone, without its projection: its tokens are `vision_width` wide, and
            what is said of texts means nothing.

    Raises:
        UsageError: sizes that do not go together.
    """

    embed_dim: int
    image_size: tuple[int, int]
    patch_size: int
    stride: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    text_width: int
    text_layers: int
    text_heads: int
    context_length: int = 77
    vocab_size: int = 49408
    quick_gelu: bool = True
    text_tower: bool = True

    def __post_init__(self):
        object.__setattr__(self, "image_size", tuple(self.image_size))
        others = ("image_size", "quick_gelu", "text_tower")
        sizes = [getattr(self, field.name) for field in fields(self) if field.name not in others]
        if len(self.image_size) != 2 or min(*self.image_size, *sizes) < 1:
            raise UsageError(f"The sizes of a CLIP are positive numbers, unlike in {self}")
        if self.stride > self.patch_size:
            raise UsageError(
                f"A stride of {self.stride} pixels would leave gaps between patches of {self.patch_size}",
                remedy=f"Choose a stride from 1 to {self.patch_size}.",
            )
        if min(self.image_size) < self.patch_size:
            height, width = self.image_size
            raise UsageError(f"An image of {height} x {width} pixels is smaller than one patch of {self.patch_size}")
        for tower in ("vision", "text"):
            width, heads = getattr(self, f"{tower}_width"), getattr(self, f"{tower}_heads")
            if width % heads:
                raise UsageError(f"The {tower} width {width} cannot be shared by {heads} attention heads")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.image_size
        return (height - self.patch_size) // self.stride + 1, (width - self.patch_size) // self.stride + 1

    def with_input(self, image_size: tuple[int, int] | None, stride: int | None) -> ClipConfig:
        """The same sizes for other images, in pixels; None keeps what there is."""
        return replace(self, image_size=image_size or self.image_size, stride=stride or self.stride)

    def image_alone(self) -> ClipConfig:
        """The same image tower, without its projection and without a text tower."""
        return replace(self, embed_dim=self.vision_width, text_tower=False)

    def to_dict(self) -> dict:
        """The sizes as JSON can hold them."""
        return asdict(self) | {"image_size": list(self.image_size)}

    @classmethod
    def from_dict(cls, values: dict) -> ClipConfig:
        """The inverse of `to_dict`.

        Raises:
            UsageError: a size is unknown, missing or of the wrong type.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise UsageError(f"These are not the sizes of a CLIP: {error}") from error


def _published(patch: int, vision: tuple[int, int], text: tuple[int, int], embed_dim: int) -> ClipConfig:
    """A published size at 384 x 128 pixels, the input of person retrieval; (width, layers) a tower."""
    (vision_width, vision_layers), (text_width, text_layers) = vision, text
    return ClipConfig(
        embed_dim=embed_dim,
        image_size=(384, 128),
        patch_size=patch,
        stride=patch,
        vision_width=vision_width,
        vision_layers=vision_layers,
        vision_heads=vision_width // HEAD_WIDTH,
        text_width=text_width,
        text_layers=text_layers,
        text_heads=text_width // HEAD_WIDTH,
    )


SIZES: dict[str, ClipConfig] = {
    "ViT-B-16": _published(16, (768, 12), (512, 12), 512),
    "ViT-B-32": _published(32, (768, 12), (512, 12), 512),
    "ViT-L-14": _published(14, (1024, 24), (768, 12), 768),
    "tiny": ClipConfig(
        embed_dim=128,
        image_size=(64, 32),
        patch_size=8,
        stride=8,
        vision_width=128,
        vision_layers=2,
        vision_heads=4,
        text_width=128,
        text_layers=2,
        text_heads=4,
        quick_gelu=False,
    ),
}


def named_size(name: str) -> ClipConfig:
    """The sizes of `name` in `SIZES`; `-quickgelu` may be added to ask for QuickGELU, as in open_clip's names.

    Raises:
        UsageError: there is no such size; the choices are listed.
    """
    base = name.removesuffix(QUICK_GELU_SUFFIX)
    if base not in SIZES:
        raise unknown_name("model", name, SIZES)
    return SIZES[base] if base == name else replace(SIZES[base], quick_gelu=True)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation computed in float32, whatever the input's type and under autocast too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


class QuickGELU(nn.Module):
    """`x * sigmoid(1.702 x)`, written with the fused SiLU."""

    def forward(self, x: Tensor) -> Tensor:
        # A product, as bfloat16 takes three times as long to divide on a CPU.
        return F.silu(1.702 * x) * (1 / 1.702)


class Attention(nn.Module):
    """Multi-head self-attention with the parameter names of `nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, *, causal: bool, visible: Tensor | None = None) -> Tensor:
        """Tokens `(B, L, W)` to `(B, L, W)`; causal: a token sees itself and those before it.

        Without `causal`, it sees those that are `visible` (B, L), or all.
        """
        query, key, value = self._heads(F.linear(x, self.in_proj_weight, self.in_proj_bias), 3)
        mixed = dot_product_attention(query, key, value, visible=visible, causal=causal)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def at(self, x: Tensor, place: Tensor, visible: Tensor | None = None) -> Tensor:
        """What `forward` makes of the token at `place` (B,) alone, `(B, W)`; it sees what is `visible` (B, L)."""
        # Not len(x): an export would take the size of its batch for that of all batches.
        width, rows = x.shape[2], torch.arange(x.shape[0], device=x.device)
        query_weight, context_weight = self.in_proj_weight.tensor_split([width])
        query_bias, context_bias = self.in_proj_bias.tensor_split([width])
        (query,) = self._heads(F.linear(x[rows, place], query_weight, query_bias)[:, None], 1)
        key, value = self._heads(F.linear(x, context_weight, context_bias), 2)
        return self.out_proj(dot_product_attention(query, key, value, visible=visible).flatten(1))

    def _heads(self, projected: Tensor, parts: int) -> Iterable[Tensor]:
        """The queries, keys or values that lie side by side in `projected` (B, L, parts W), each `(B, H, L, W / H)`."""
        return (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in projected.chunk(parts, dim=2))

    @torch.no_grad()
    def gaze(self, x: Tensor, place: Tensor, visible: Tensor | None = None) -> Tensor:
        """How much the token at `place` (B,) of `x` (B, L, W) looks at each, `(B, L)` averaged over the heads.

        Rows sum to 1; what is not `visible` (B, L) gets 0.
        """
        width = x.shape[2]
        (query_weight, key_weight), (query_bias, key_bias) = (
            parameter.split(width)[:2] for parameter in (self.in_proj_weight, self.in_proj_bias)
        )
        rows = torch.arange(x.shape[0], device=x.device)
        query = F.linear(x[rows, place], query_weight, query_bias).unflatten(1, (self.heads, 1, -1))
        key = F.linear(x, key_weight, key_bias).unflatten(2, (self.heads, -1)).transpose(1, 2)
        scores = (query @ key.transpose(2, 3)).squeeze(2).float() * query.shape[-1] ** -0.5
        if visible is not None:
            scores = scores.masked_fill(~visible[:, None], -torch.inf)
        return scores.softmax(dim=2).mean(dim=1)


class Block(nn.Module):
    """A pre-norm transformer block: attention, then a perceptron four times as wide."""

    def __init__(self, width: int, heads: int, *, quick_gelu: bool):
        super().__init__()
        self.ln_1 = LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, 4 * width),
                gelu=QuickGELU() if quick_gelu else nn.GELU(),
                c_proj=nn.Linear(4 * width, width),
            )
        )

    def forward(self, x: Tensor, *, causal: bool, visible: Tensor | None = None) -> Tensor:
        """Tokens `(B, L, W)` to `(B, L, W)`; see `Attention`."""
        x = x + self.attn(self.ln_1(x), causal=causal, visible=visible)
        return x + self.mlp(self.ln_2(x))

    def at(self, x: Tensor, place: Tensor, visible: Tensor | None = None) -> Tensor:
        """What `forward` makes of the token at `place` (B,) alone, `(B, W)`; see `Attention.at`."""
        token = x[torch.arange(x.shape[0], device=x.device), place] + self.attn.at(self.ln_1(x), place, visible)
        return token + self.mlp(self.ln_2(token))

    def gaze(self, x: Tensor, place: Tensor, visible: Tensor | None = None) -> Tensor:
        """How much the token at `place` (B,) looks at each of `x` (B, L, W) in this block; see `Attention.gaze`."""
        return self.attn.gaze(self.ln_1(x), place, visible)


def run_block(block: Block, x: Tensor, *, causal: bool, visible: Tensor | None) -> Tensor:
    """`block(x, ...)`: as a function, so that another way to run blocks can take its place."""
    return block(x, causal=causal, visible=visible)


class Transformer(nn.Module):
    """A stack of blocks, causal or not.

    In training its blocks are run by `runner`, a function like `run_block`; with `checkpointed` only what enters each
    is kept, and the rest is computed again going backward. Neither changes names of parameters, nor evaluation.
    """

    def __init__(self, width: int, layers: int, heads: int, *, quick_gelu: bool, causal: bool):
        super().__init__()
        self.causal = causal
        self.runner: Callable[..., Tensor] = run_block
        self.checkpointed = False
        self.resblocks = nn.ModuleList(Block(width, heads, quick_gelu=quick_gelu) for _ in range(layers))

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """Tokens `(B, L, W)` to `(B, L, W)`; those that are not `visible` (B, L) are never looked at."""
        return self._run(self.resblocks, x, visible)

    def at(self, x: Tensor, place: Tensor, visible: Tensor | None = None) -> Tensor:
        """The token at `place` (B,) alone of what `forward` makes, `(B, 1, W)`: the last block works for no other.

        A causal stack cannot look past a token; `visible` is to say so.
        """
        return self.resblocks[-1].at(self._run(self.resblocks[:-1], x, visible), place, visible)[:, None]

    def attend(self, x: Tensor, place: Tensor, visible: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `forward`, and how much the token at `place` (B,) looks at each token in the last block, `(B, L)`.

        A causal stack cannot look past a token; `visible` is to say so.
        """
        before = self._run(self.resblocks[:-1], x, visible)
        return self._run(self.resblocks[-1:], before, visible), self.resblocks[-1].gaze(before, place, visible)

    def _run(self, blocks: Iterable[Block], x: Tensor, visible: Tensor | None) -> Tensor:
        run = self.runner if self.training else run_block
        if self.checkpointed and self.training and torch.is_grad_enabled():
            # Blocks draw no random numbers, so their state need not be kept.
            run = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)
        for block in blocks:
            x = run(block, x, causal=self.causal, visible=None if self.causal else visible)
        return x

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """OpenAI's scheme: the deeper the stack, the less each residual branch adds at first."""
        for block in self.resblocks:
            width = block.ln_1.weight.numel()
            residual_std = width**-0.5 * (2 * len(self.resblocks)) ** -0.5
            block.attn.in_proj_weight.normal_(std=width**-0.5, generator=generator)
            block.attn.out_proj.weight.normal_(std=residual_std, generator=generator)
            block.mlp.c_fc.weight.normal_(std=(2 * width) ** -0.5, generator=generator)
            block.mlp.c_proj.weight.normal_(std=residual_std, generator=generator)
            for bias in (block.attn.in_proj_bias, block.attn.out_proj.bias, block.mlp.c_fc.bias, block.mlp.c_proj.bias):
                bias.zero_()
            for norm in (block.ln_1, block.ln_2):
                norm.reset_parameters()


class VisionTransformer(nn.Module):
    """The image tower: patches, positions, blocks, and beside a text tower of CLIP a projection."""

    def __init__(self, config: ClipConfig):
        super().__init__()
        width, (rows, columns) = config.vision_width, config.grid
        self.image_size = config.image_size
        self.grid = config.grid
        self.conv1 = nn.Conv2d(3, width, config.patch_size, config.stride, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(1 + rows * columns, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(
            width, config.vision_layers, config.vision_heads, quick_gelu=config.quick_gelu, causal=False
        )
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(torch.zeros(width, config.embed_dim)) if config.text_tower else None

    def forward(self, pixels: Tensor, keep: Tensor | None = None, *, whole_only: bool = False) -> Tensor:
        """See `Clip.encode_image`."""
        x = self._embed(pixels, keep)
        if not whole_only:
            return self._project(self.transformer(x))
        class_token = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
        return self._project(self.transformer.at(x, class_token))

    def attend(self, pixels: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, and how much the token at `place` (B,) looks at each in the last block, `(B, 1 + N)`."""
        x, attention = self.transformer.attend(self._embed(pixels), place)
        return self._project(x), attention

    def _embed(self, pixels: Tensor, keep: Tensor | None = None) -> Tensor:
        """What enters the blocks: the class token and the patches, all or those to keep, `(B, 1 + N, W)`."""
        if pixels.shape[1:] != (3, *self.image_size):
            raise UsageError(
                f"The image tower takes images of shape {(3, *self.image_size)}, not {tuple(pixels.shape[1:])}"
            )
        patches = self.conv1(pixels).flatten(2).transpose(1, 2) + self.positional_embedding[1:]
        if keep is not None:
            patches = patches.gather(1, keep.unsqueeze(2).expand(-1, -1, patches.shape[2]))
        class_token = (self.class_embedding + self.positional_embedding[0]).expand(patches.shape[0], 1, -1)
        return self.ln_pre(torch.cat([class_token, patches], dim=1))

    def _project(self, x: Tensor) -> Tensor:
        x = self.ln_post(x)
        return x if self.proj is None else x @ self.proj

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """OpenAI's scheme, with positions that start as a small 2-D sine-cosine table."""
        width = self.class_embedding.numel()
        fan_in = self.conv1.weight[0].numel()
        # What PyTorch draws for a convolution (and OpenAI keeps): uniform with the variance 1 / (3 fan_in).
        self.conv1.weight.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
        self.class_embedding.normal_(std=width**-0.5, generator=generator)
        self.positional_embedding.copy_(_image_positions(self.grid, width))
        self.transformer.initialise(generator)
        if self.proj is not None:
            self.proj.normal_(std=width**-0.5, generator=generator)
        for norm in (self.ln_pre, self.ln_post):
            norm.reset_parameters()


class Clip(nn.Module):
    """The dual encoder of CLIP. Its weights mean something after `initialise` or once a state dict is loaded.

    Where `config.text_tower` is False it has the image tower alone, and reads no text.
    """

    def __init__(self, config: ClipConfig):
        super().__init__()
        self.config = config
        self.visual = VisionTransformer(config)
        if not config.text_tower:
            return
        self.token_embedding = nn.Embedding(config.vocab_size, config.text_width)
        self.positional_embedding = nn.Parameter(torch.zeros(config.context_length, config.text_width))
        self.transformer = Transformer(
            config.text_width, config.text_layers, config.text_heads, quick_gelu=config.quick_gelu, causal=True
        )
        self.ln_final = LayerNorm(config.text_width)
        self.text_projection = nn.Parameter(torch.zeros(config.text_width, config.embed_dim))

    def image_alone(self) -> Clip:
        """The image tower alone, with the same weights and without its projection, for a text tower of another kind."""
        if not self.config.text_tower:
            return self
        with torch.device("meta"):
            alone = Clip(self.config.image_alone())
        tensors = self.state_dict()
        alone.load_state_dict({name: tensors[name] for name in alone.state_dict()}, assign=True)
        return alone

    def encode_image(self, pixels: Tensor, keep: Tensor | None = None, *, whole_only: bool = False) -> Tensor:
        """Normalised images `(B, 3, H, W)` to tokens `(B, 1 + N, D)`: the global one, then the patches row by row.

        With `keep`, indices `(B, K)` of patches from 0 to N - 1, only these and the class token enter the blocks, each
        at its own position; the result is `(B, 1 + K, D)`, in the order of `keep`. With `whole_only` the global token
        is all that comes out, `(B, 1, D)`, at less work.

        Raises:
            UsageError: the images are not of the size that the model is made for.
        """
        return self.visual(pixels, keep, whole_only=whole_only)

    def encode_text(self, token_ids: Tensor, *, whole_only: bool = False) -> Tensor:
        """Token ids `(B, L)` to tokens `(B, L, D)`; the global one is at the end token.

        Attention is causal, so padding after the end token, or its absence, changes nothing before it. With
        `whole_only` the global token is all that comes out, `(B, 1, D)`, at less work.

        Raises:
            UsageError: the rows are longer than the context.
        """
        x = self._embed(token_ids)
        if not whole_only:
            return self._project(self.transformer(x))
        ends = token_ids.argmax(dim=1)
        visible, _ = caption_masks(ends, token_ids.shape[1])
        return self._project(self.transformer.at(x, ends, visible))

    def see(self, pixels: Tensor, *, attention: bool = False, whole_only: bool = False) -> Tokens:
        """All tokens of `encode_image`, with the attention of the class token only where it is asked for.

        With `whole_only` the class token comes without the others.
        """
        place = torch.zeros(pixels.shape[0], dtype=torch.long, device=pixels.device)
        if not attention:
            return Tokens(self.encode_image(pixels, whole_only=whole_only), place, complete=not whole_only)
        values, gaze = self.visual.attend(pixels, place)
        return Tokens(values, place, attention=gaze)

    def read(self, token_ids: Tensor, *, attention: bool = False, whole_only: bool = False) -> Tokens:
        """The tokens of `encode_text`, with the attention of the end token only where it is asked for.

        The end token, which has the largest id, is the global one; with `whole_only` it comes without the others.
        """
        ends, gaze = token_ids.argmax(dim=1), None
        if whole_only:
            return Tokens(self.encode_text(token_ids, whole_only=True), torch.zeros_like(ends), complete=False)
        visible, words = caption_masks(ends, token_ids.shape[1])
        if attention:
            x, gaze = self.transformer.attend(self._embed(token_ids), ends, visible)
            values = self._project(x)
        else:
            values = self.encode_text(token_ids)
        return Tokens(values, ends, visible, gaze, words, context=self.config.context_length)

    def _embed(self, token_ids: Tensor) -> Tensor:
        length = token_ids.shape[1]
        if length > self.config.context_length:
            raise UsageError(f"Captions of {length} tokens exceed the context of {self.config.context_length}")
        return self.token_embedding(token_ids) + self.positional_embedding[:length]

    def _project(self, x: Tensor) -> Tensor:
        return self.ln_final(x) @ self.text_projection

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw random weights from `generator`: OpenAI's scheme, but small sine-cosine tables as first positions."""
        self.visual.initialise(generator)
        if not self.config.text_tower:
            return
        width = self.config.text_width
        self.token_embedding.weight.normal_(std=0.02, generator=generator)
        self.positional_embedding.copy_(_scaled(_sine_cosine(torch.arange(self.config.context_length), width)))
        self.transformer.initialise(generator)
        self.ln_final.reset_parameters()
        self.text_projection.normal_(std=width**-0.5, generator=generator)


def _image_positions(grid: tuple[int, int], width: int) -> Tensor:
    """The first position table `(1 + N, W)` of the image tower: zero for the class."""
    return torch.cat([torch.zeros(1, width), _scaled(grid_positions(grid, width))])


def grid_positions(grid: tuple[int, int], width: int) -> Tensor:
    """A 2-D sine-cosine table `(N, W)`: the first half of the width tells the row, the second the column."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    half = width // 2
    return torch.cat([_sine_cosine(rows.flatten(), half), _sine_cosine(columns.flatten(), width - half)], dim=1)


def _sine_cosine(positions: Tensor, width: int) -> Tensor:
    """The position table of Vaswani et al. (2017), `(L, W)`, sines first."""
    n_waves = math.ceil(width / 2)
    angles = positions[:, None] * 10000.0 ** (-torch.arange(n_waves) / n_waves)
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width]


def _scaled(table: Tensor) -> Tensor:
    """The table at a root mean square of `POSITION_STD`, near the token embedding's."""
    return table * (POSITION_STD / table.square().mean().sqrt())
