"""An objective, a head and a data set of one's own; docs/extending.md explains them."""

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from tiprctl import extension as tipr


@tipr.frozen
class TogetherConfig:
    """`margin`: the cosine distance within which two captions of one person are left alone."""

    margin: tipr.NonNegative = 0.1


class Together(tipr.Objective):
    """Pulls together what is said of one person, by the distance beyond the margin, averaged over such pairs."""

    name, Config = "together", TogetherConfig

    def forward(self, enc: tipr.Encodings, batch: tipr.PairBatch) -> tipr.ObjectiveOutput:
        distance = 1 - tipr.cosine_similarity(enc.text, enc.text)
        pairs = (batch.pids[:, None] == batch.pids).triu(diagonal=1)
        loss = ((distance - self.config.margin).relu() * pairs).sum() / pairs.sum().clamp(min=1)
        return tipr.ObjectiveOutput(loss, {"pairs": pairs.sum()})


@tipr.frozen
class PooledConfig:
    """`share`: how much of the mean is added before anything is learnt; with 0 the head starts as the plain one."""

    share: tipr.NonNegative = 0.0


class Pooled(tipr.Head):
    """The global token and, by a share that is learnt for each feature, the mean of the patches or of the words."""

    name, Config = "pooled", PooledConfig

    def __init__(self, config: PooledConfig, embed_dim: int):
        super().__init__(config, embed_dim)
        self.share = nn.Parameter(torch.full((embed_dim,), config.share))

    def image(self, tokens: tipr.Tokens) -> tipr.Features:
        return tipr.Features(tokens.whole + self.share * mean_of_parts(tokens))

    def text(self, tokens: tipr.Tokens) -> tipr.Features:
        return tipr.Features(tokens.whole + self.share * mean_of_parts(tokens))


def mean_of_parts(tokens: tipr.Tokens) -> Tensor:
    """The mean `(B, D)` of the patches, or of a caption's words without its marks and padding."""
    parts = tokens.local.unsqueeze(2)
    return (tokens.values * parts).sum(dim=1) / parts.sum(dim=1).clamp(min=1)


PATH = re.compile(r"imgs/(train|val|test)/(\d{1,9})_.+")


def read(file: Path) -> list[tipr.Record]:
    """The images of a list of {image, captions}: `test/0002_c1.jpg` shows person 2 and is for testing."""
    return [_record(fields) for fields in tipr.read_objects(file)]


def _record(fields: tipr.Fields) -> tipr.Record:
    path = fields.path("image", "imgs")
    told = PATH.fullmatch(path)
    if told is None:
        raise fields.error(f'has "{path}" as "image" where imgs/SPLIT/PERSON_NAME belongs')
    return tipr.Record(told[1], int(told[2]), path, fields.captions())


STATION = tipr.DataSet(
    name="station", folder="Station", annotations=("captions.json",), read=read, source="the cameras of your station"
)

if __name__ == "__main__":
    tipr.add(Together, Pooled, STATION)
    from tiprctl.cli import main  # after the names are known, for its help lists them

    main()
