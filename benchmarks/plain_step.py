"""A training step as the published code of IRRA and SEN orders it: what ours is measured against.

Written from the papers and from docs/methods for this purpose alone. Captions are padded to the whole context, tokens
travel sequence first through `nn.MultiheadAttention` with a mask of their own, SEN's caption is encoded once for the
global branch and once for the restoration, each loss makes its own similarities, the words' scores are made for every
token and not only for the masked ones, Adam takes parameter by parameter, gradients are zeroed in place, and every loss
is fetched after every step. Parameters have the names of ours, so that a state dict fits both.

One thing is as in ours and not as published, so that both have the same losses: unless `attend_padding`, the decoders
do not look at the padding.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tiprctl.config import OptimConfig
from tiprctl.models.blocks import attention_heads
from tiprctl.models.clip import ClipConfig
from tiprctl.models.encodings import PairBatch, draw_masks
from tiprctl.models.masking import GREY_WEIGHTS, patchify
from tiprctl.objectives.composition import Composition
from tiprctl.optimisation import parameter_groups

OBJECTIVES = frozenset({"sdm", "id", "itc", "mlm", "tir", "triplet"})
"""What the plain step can train."""
EPSILON = 1e-8


@dataclass(frozen=True)
class PlainBatch:
    """A batch as the published loaders make it, B pairs, with the masks that ours draws in the step.

    `pixels` (B, 3, H, W); `token_ids` (B, 77), and `masked_ids` with `labels`, 0 where nothing is to be told; `pids`
    (B,); `kept` (B, K) the patches that are not hidden. What no objective needs is None.
    """

    pixels: Tensor
    token_ids: Tensor
    pids: Tensor
    masked_ids: Tensor | None = None
    labels: Tensor | None = None
    kept: Tensor | None = None


def plain_batch(batch: PairBatch, composition: Composition, generator: Generator) -> PlainBatch:
    """`batch` padded to the context, with the masks that `composition` draws from a generator in the same state."""
    encoder, device = composition.encoder, batch.pixels.device
    masks = draw_masks(encoder, batch, composition.needs(0.0), generator)
    ids, masked, labels = (
        None if each is None else F.pad(each, (0, encoder.clip.config.context_length - each.shape[1])).to(device)
        for each in (batch.token_ids, masks.masked_ids, masks.token_labels)
    )
    return PlainBatch(
        batch.pixels, ids, batch.pids, masked, labels, None if masks.kept is None else masks.kept.to(device)
    )


class PlainNorm(nn.LayerNorm):
    """Layer normalisation in float32, in the type of the input again."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.type(torch.float32)).type(x.dtype)


class PlainGelu(nn.Module):
    """QuickGELU by its formula."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class PlainBlock(nn.Module):
    """A pre-norm block on tokens `(L, B, W)`."""

    def __init__(self, width: int, heads: int, *, quick_gelu: bool):
        super().__init__()
        self.ln_1 = PlainNorm(width)
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_2 = PlainNorm(width)
        layers = OrderedDict(
            c_fc=nn.Linear(width, 4 * width),
            gelu=PlainGelu() if quick_gelu else nn.GELU(),
            c_proj=nn.Linear(4 * width, width),
        )
        self.mlp = nn.Sequential(layers)

    def forward(self, x: Tensor, mask: Tensor | None, hidden: Tensor | None) -> Tensor:
        normed = self.ln_1(x)
        mask = None if mask is None else mask.to(x.dtype)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask, key_padding_mask=hidden)[0]
        return x + self.mlp(self.ln_2(x))


class PlainTransformer(nn.Module):
    """Blocks on tokens `(B, L, W)`, which they take sequence first; `hidden` (B, L), True = not looked at."""

    def __init__(self, width: int, layers: int, heads: int, *, quick_gelu: bool = True):
        super().__init__()
        self.resblocks = nn.ModuleList(PlainBlock(width, heads, quick_gelu=quick_gelu) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None, hidden: Tensor | None = None) -> Tensor:
        x = x.permute(1, 0, 2)
        for block in self.resblocks:
            x = block(x, mask, hidden)
        return x.permute(1, 0, 2)


class PlainVision(nn.Module):
    """The image tower: pixels `(B, 3, H, W)` to tokens `(B, 1 + N, D)`."""

    def __init__(self, config: ClipConfig):
        super().__init__()
        width, (rows, columns) = config.vision_width, config.grid
        self.conv1 = nn.Conv2d(3, width, config.patch_size, config.stride, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(1 + rows * columns, width))
        self.ln_pre = PlainNorm(width)
        self.transformer = PlainTransformer(
            width, config.vision_layers, config.vision_heads, quick_gelu=config.quick_gelu
        )
        self.ln_post = PlainNorm(width)
        self.proj = nn.Parameter(torch.empty(width, config.embed_dim))

    def forward(self, pixels: Tensor, kept: Tensor | None = None) -> Tensor:
        x = self.conv1(pixels).flatten(2).permute(0, 2, 1)
        first = self.class_embedding.to(x.dtype) + torch.zeros(len(x), 1, x.shape[2], dtype=x.dtype, device=x.device)
        x = torch.cat([first, x], dim=1) + self.positional_embedding.to(x.dtype)
        if kept is not None:
            patches = torch.gather(x[:, 1:], 1, kept.unsqueeze(2).repeat(1, 1, x.shape[2]))
            x = torch.cat([x[:, :1], patches], dim=1)
        return self.ln_post(self.transformer(self.ln_pre(x))) @ self.proj


class PlainClip(nn.Module):
    """Both towers."""

    def __init__(self, config: ClipConfig):
        super().__init__()
        self.visual = PlainVision(config)
        self.token_embedding = nn.Embedding(config.vocab_size, config.text_width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.text_width))
        self.transformer = PlainTransformer(
            config.text_width, config.text_layers, config.text_heads, quick_gelu=config.quick_gelu
        )
        self.ln_final = PlainNorm(config.text_width)
        self.text_projection = nn.Parameter(torch.empty(config.text_width, config.embed_dim))
        causal = torch.full((config.context_length, config.context_length), float("-inf")).triu_(1)
        self.register_buffer("mask", causal, persistent=False)

    def encode_image(self, pixels: Tensor, keep: Tensor | None = None) -> Tensor:
        """Images to tokens `(B, 1 + N, D)`, or `(B, 1 + K, D)` of the patches to keep."""
        return self.visual(pixels, keep)

    def encode_text(self, token_ids: Tensor) -> Tensor:
        """Padded captions `(B, 77)` to tokens `(B, 77, D)`."""
        x = self.token_embedding(token_ids) + self.positional_embedding
        return self.ln_final(self.transformer(x, self.mask)) @ self.text_projection


class PlainCross(nn.Module):
    """Cross-attention sequence first; the context is normed once as keys and once as values."""

    def __init__(self, width: int):
        super().__init__()
        self.ln_query = PlainNorm(width)
        self.ln_context = PlainNorm(width)
        self.attn = nn.MultiheadAttention(width, attention_heads(width))

    def forward(self, query: Tensor, context: Tensor, hidden: Tensor | None = None) -> Tensor:
        inputs = (self.ln_query(query), self.ln_context(context), self.ln_context(context))
        query, key, value = (each.permute(1, 0, 2) for each in inputs)
        return self.attn(query, key, value, need_weights=False, key_padding_mask=hidden)[0].permute(1, 0, 2)


class PlainRestoration(nn.Module):
    """SEN's decoder, `tir`."""

    def __init__(self, clip: ClipConfig, depth: int, positions: Tensor):
        super().__init__()
        width = clip.embed_dim
        self.patch_size = clip.patch_size
        self.ln_visible = PlainNorm(width)
        self.embed = nn.Linear(width, width)
        self.mask_token = nn.Embedding(1, width)
        self.cross = PlainCross(width)
        self.ln_attended = PlainNorm(width)
        self.transformer = PlainTransformer(width, depth, attention_heads(width))
        self.ln_post = PlainNorm(width)
        self.pixels = nn.Linear(width, 3 * clip.patch_size**2)
        self.register_buffer("positions", positions.clone(), persistent=False)

    def forward(self, visible: Tensor, kept: Tensor, text: Tensor, hidden: Tensor | None, pixels: Tensor) -> Tensor:
        x = self.embed(self.ln_visible(visible))
        dropped = torch.ones(len(x), len(self.positions) - 1, device=x.device).scatter(1, kept, 0)
        order = dropped.argsort(dim=1, stable=True)
        blanks = self.mask_token.weight.to(x.dtype).repeat(len(x), order.shape[1] - kept.shape[1], 1)
        patches = torch.cat([x[:, 1:], blanks], dim=1)
        patches = torch.gather(patches, 1, order.argsort(dim=1).unsqueeze(2).repeat(1, 1, x.shape[2]))
        x = torch.cat([x[:, :1], patches], dim=1) + self.positions
        x = self.transformer(self.ln_attended(self.cross(x, text, hidden)))
        restored = self.pixels(self.ln_post(x))[:, 1:]
        error = (restored.float() - patchify(pixels, self.patch_size)).square().mean(dim=2)
        return (error * dropped).sum() / dropped.sum()


class PlainWords(nn.Module):
    """IRRA's decoder, `mlm`, which scores every token of the padded caption."""

    def __init__(self, clip: ClipConfig, depth: int):
        super().__init__()
        width = clip.embed_dim
        self.cross = PlainCross(width)
        self.transformer = PlainTransformer(width, depth, attention_heads(width))
        self.ln_post = PlainNorm(width)
        layers = OrderedDict(
            dense=nn.Linear(width, width),
            gelu=PlainGelu(),
            ln=PlainNorm(width),
            fc=nn.Linear(width, clip.vocab_size),
        )
        self.head = nn.Sequential(layers)

    def forward(self, masked_text: Tensor, image: Tensor, hidden: Tensor | None, labels: Tensor) -> Tensor:
        x = self.transformer(self.cross(masked_text, image), hidden=hidden)
        scores = self.head(self.ln_post(x)).float().flatten(0, 1)
        return F.cross_entropy(scores, labels.flatten(), ignore_index=0)


class PlainModel(nn.Module):
    """The towers and the objectives of a method, with the weights of `composition`, a copy.

    Raises:
        ValueError: the plain step cannot train one of the objectives, or the encoder's head.
    """

    def __init__(self, composition: Composition):
        super().__init__()
        names = {config.name for config in composition.configs}
        if names - OBJECTIVES or composition.encoder.head.name != "global":
            raise ValueError(f"the plain step trains {', '.join(sorted(OBJECTIVES))} on the global head alone")
        self.configs = composition.configs
        self.settings = {name: objective.config for name, objective in composition.objectives.items()}
        clip = composition.encoder.clip.config
        self.encoder = nn.ModuleDict({"clip": PlainClip(clip)})
        self.objectives = nn.ModuleDict()
        for name, ours in composition.objectives.items():
            self.objectives[name] = nn.Module()
            if name == "id":
                identities, width = ours.classifier.weight.shape
                self.objectives[name].classifier = nn.Linear(width, identities)
            elif name == "itc":
                self.objectives[name].log_scale = nn.Parameter(torch.empty(()))
            elif name == "tir":
                self.objectives[name] = PlainRestoration(clip, ours.config.depth, ours.positions)
            elif name == "mlm":
                self.objectives[name] = PlainWords(clip, ours.config.depth)
        self.load_state_dict(composition.state_dict())

    def forward(self, batch: PlainBatch) -> dict[str, Tensor]:
        """Each objective's loss times its weight, by name."""
        clip = self.encoder["clip"]
        image_tokens, text_tokens = clip.encode_image(batch.pixels), clip.encode_text(batch.token_ids)
        ends = batch.token_ids.argmax(dim=1)
        image = image_tokens[:, 0].float()
        text = text_tokens[torch.arange(len(ends), device=ends.device), ends].float()
        hidden = torch.arange(batch.token_ids.shape[1], device=ends.device) > ends[:, None]
        losses = {}
        for config in self.configs:
            objective, settings = self.objectives[config.name], self.settings[config.name]
            unseen = None if getattr(settings, "attend_padding", False) else hidden
            match config.name:
                case "sdm":
                    loss = plain_sdm(image, text, batch.pids, 1 / settings.temperature)
                case "itc":
                    loss = plain_itc(image, text, objective.log_scale.exp())
                case "triplet":
                    loss = plain_triplet(image, text, batch.pids, settings.margin)
                case "id":
                    scores = (objective.classifier(each).float() for each in (image, text))
                    loss = sum(F.cross_entropy(each, batch.pids) for each in scores) / 2
                case "mlm":
                    loss = objective(clip.encode_text(batch.masked_ids), image_tokens, unseen, batch.labels)
                case "tir":
                    visible = clip.encode_image(_plain_grey(batch.pixels), batch.kept)
                    again = clip.encode_text(batch.token_ids)
                    loss = objective(visible, batch.kept, again, unseen, batch.pixels)
            losses[config.name] = config.weight * loss
        return losses


def _plain_grey(pixels: Tensor) -> Tensor:
    red, green, blue = (weight * pixels[:, channel] for channel, weight in enumerate(GREY_WEIGHTS))
    return (red + green + blue).unsqueeze(1).repeat(1, 3, 1, 1)


def _similarity(image: Tensor, text: Tensor) -> Tensor:
    """Cosines `(B, B)`, rows texts, columns images."""
    with torch.autocast(image.device.type, enabled=False):
        image, text = (each / each.norm(dim=1, keepdim=True) for each in (image, text))
        return text @ image.t()


def plain_sdm(image: Tensor, text: Tensor, pids: Tensor, scale: float) -> Tensor:
    """SDM, by its formula."""
    scores = scale * _similarity(image, text)
    labels = (pids.view(-1, 1) == pids.view(1, -1)).float()
    labels = labels / labels.sum(dim=1)
    total = 0
    for each in (scores, scores.t()):
        predicted = F.softmax(each, dim=1)
        total = total + (predicted * (F.log_softmax(each, dim=1) - torch.log(labels + EPSILON))).sum(dim=1).mean()
    return total


def plain_itc(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE."""
    scores = scale * _similarity(image, text)
    labels = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, labels) + F.cross_entropy(scores.t(), labels)) / 2


def plain_triplet(image: Tensor, text: Tensor, pids: Tensor, margin: float) -> Tensor:
    """SEN's triplet of cosine distances with the hardest negative, both ways."""
    distances = 1 - _similarity(image, text)
    others = distances.masked_fill(pids.view(-1, 1) == pids.view(1, -1), float("inf"))
    paired = distances.diagonal()
    return sum(F.relu(paired - others.min(dim=side).values + margin).mean() for side in (0, 1))


def plain_adam(model: PlainModel, composition: Composition, config: OptimConfig) -> torch.optim.Adam:
    """Adam as it was before it was fused: a group for each parameter, with the rate and decay that ours gives it."""
    names: Mapping[int, str] = {id(parameter): name for name, parameter in composition.named_parameters()}
    own = dict(model.named_parameters())
    groups = [
        {"params": [own[names[id(parameter)]]], "lr": group["lr"], "weight_decay": group["weight_decay"]}
        for group in parameter_groups(composition.roles(), config)
        for parameter in group["params"]
    ]
    return torch.optim.Adam(groups, lr=config.lr, betas=config.betas, eps=config.eps, foreach=False, fused=False)
