"""An objective, a head and a data set of one's own; docs/extending.md explains them."""

from pathlib import Path

import torch

from tiprctl import extension as tipr


@tipr.frozen
class TogetherConfig:
    margin: tipr.NonNegative = 0.1


class Together(tipr.Objective):
    """Pulls together what is said of one person, by the distance beyond the margin, averaged over such pairs."""

    name, Config = "together", TogetherConfig

    def forward(self, enc: tipr.Encodings, batch: tipr.PairBatch) -> tipr.ObjectiveOutput:
        excess = (1 - tipr.cosine_similarity(enc.text, enc.text) - self.config.margin).relu()
        pairs = (batch.pids[:, None] == batch.pids).triu(diagonal=1)
        return tipr.ObjectiveOutput((excess * pairs).sum() / pairs.sum().clamp(min=1), {"pairs": pairs.sum()})


@tipr.frozen
class PooledConfig:
    share: tipr.NonNegative = 0.0


class Pooled(tipr.Head):
    """The global token and, by a share that is learnt for each feature, the mean of the patches or of the words."""

    name, Config = "pooled", PooledConfig

    def __init__(self, config: PooledConfig, embed_dim: int):
        super().__init__(config, embed_dim)
        self.share = torch.nn.Parameter(torch.full((embed_dim,), config.share))

    def image(self, tokens: tipr.Tokens) -> tipr.Features:
        local = tokens.local.unsqueeze(2)
        mean = (tokens.values * local).sum(dim=1) / local.sum(dim=1).clamp(min=1)
        return tipr.Features(tokens.whole + self.share * mean)

    text = image


def read(file: Path) -> list[tipr.Record]:
    """The images of a JSON list of {image, person, split, captions}."""
    return [
        tipr.Record(each.split(), each.pid("person"), each.path("image", "imgs"), each.captions())
        for each in tipr.read_objects(file)
    ]


STATION = tipr.DataSet("station", "Station", ("captions.json",), read, source="the cameras of your station")

if __name__ == "__main__":
    tipr.add(Together, Pooled, STATION)
    from tiprctl.cli import main  # after the names are known, for its help lists them

    main()
