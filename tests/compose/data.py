"""The demos' data as files: a folder a node, the same names in each, as replicas are configured alike.

Written on the machine that runs the test: reading the data takes scikit-learn, which no image has.
"""

from __future__ import annotations

from pathlib import Path

from edge_attention.demo import digits
from edge_attention.demo.digits import Digits
from edge_attention.demo.patients import LABEL_LAB, LABS, Patients

FILES = {"measurements": "measurements.csv", "diagnoses": "diagnoses.csv", "digits": "digits.npz"}
"""Dataset -> its file on every node."""

KNOWN, MEAN = ("diagnoses", "benign"), 357 / 569
"""A dataset of every node, a column of it that holds a whole number a row, and its mean."""

TEST = "test.npz"
"""Digits nobody trains on, for the client."""


def write(folder: Path) -> None:
    """Every node gets the diagnoses; the job asks one of them, as in the demo."""
    patients, images = Patients.load(), Digits.load()
    parts = digits.dirichlet_split(images.train.label, len(LABS), digits.ALPHA, digits.MINIMUM, digits.SEED)
    written = patients.write(folder)
    for number, (lab, rows) in enumerate(zip(LABS, parts, strict=True)):
        own = folder / str(number)
        own.mkdir()
        (own / FILES["measurements"]).write_bytes(written[lab]["measurements"].read_bytes())
        (own / FILES["diagnoses"]).write_bytes(written[LABEL_LAB]["diagnoses"].read_bytes())
        images.train.take(rows).write(own / FILES["digits"])
    images.test.write(folder / TEST)
