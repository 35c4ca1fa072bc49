"""Modules that exporters do most to."""

from __future__ import annotations

import torch
from torch import nn


class Tab(nn.Module):
    """A small transformer over columns: equal norms and zero biases, layers alike, transposed weights."""

    def __init__(self, features=16, classes=3, d=32, heads=4, layers=2):
        super().__init__()
        self.w = nn.Parameter(torch.randn(features, d) * 0.1)
        self.b = nn.Parameter(torch.randn(features, d) * 0.02)
        self.cls = nn.Parameter(torch.randn(1, 1, d) * 0.02)
        layer = nn.TransformerEncoderLayer(
            d, heads, 64, dropout=0.1, batch_first=True, norm_first=True, activation="gelu"
        )
        self.enc = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, classes)

    def forward(self, x):
        tokens = x.unsqueeze(-1) * self.w + self.b
        tokens = torch.cat([self.cls.expand(x.shape[0], -1, -1), tokens], 1)
        return self.head(self.norm(self.enc(tokens)[:, 0]))


class Pictures(nn.Module):
    """Convolutions with batch norms behind them, which exporters fold into them."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.AvgPool2d(4)
        )
        self.head = nn.Linear(16, 2)
        with torch.no_grad():
            self.body[1].running_mean.normal_()
            self.body[1].running_var.uniform_(0.5, 2)

    def forward(self, pixels):
        return self.head(self.body(pixels).flatten(1))


class Words(nn.Module):
    """An embedding that is the output projection too, a layer that runs twice, one that does nothing."""

    def __init__(self, words=20, d=8):
        super().__init__()
        self.embed = nn.Embedding(words, d)
        self.again = nn.Linear(d, d)
        self.out = nn.Linear(d, words, bias=False)
        self.out.weight = self.embed.weight
        self.pooler = nn.Linear(d, d)
        self.fixed = nn.Parameter(torch.ones(d), requires_grad=False)

    def forward(self, ids):
        found = self.embed(ids)
        for _ in range(2):
            found = torch.tanh(self.again(found)) * self.fixed
        return self.out(found)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(5, 6, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def zeroed(module):
    """Every bias zero and every norm one, as most modules begin: exporters store those once."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    return module
