"""The demo's data and model: three labs measure the same 569 patients, ten measurements each.

The UCI breast-cancer data (Wolberg, Street, Mangasarian 1995) as scikit-learn carries it. Each lab's file
has its rows in an order of its own: only the patients' ids tell which belong together.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_attention.core.messages.training import OptimizerSpec
from edge_attention.core.tensors import Float32, Int64
from edge_attention.graphs.builders.tabular import classifier_head, tabular_encoder
from edge_attention.jobs.job import Encoder, FusionJob, Head

LABS = {"means": "mean", "errors": "error", "worst": "worst"}
"""Lab -> the word its columns carry."""

LABEL_LAB = "means"
KEY_HEADS, QUERY_HEADS, QUERIES, DIM = 2, 4, 2, 8
ROUNDS, BATCH, HOLDOUT, SEED, RATE, DECAY = 200, 64, 0.2, 6, 1e-3, 0.1


@dataclass(frozen=True, eq=False)
class Patients:
    """Standardised measurements by lab, float32 [patients, 10], and labels, int64 [patients]."""

    measurements: Mapping[str, Float32]
    labels: Int64
    columns: Mapping[str, list[str]]

    @classmethod
    def load(cls) -> Patients:
        """Read the data; each lab standardises its own columns, which needs nothing of the others."""
        from sklearn.datasets import load_breast_cancer

        data = load_breast_cancer()
        names = [str(name).replace(" ", "_") for name in data.feature_names]
        measurements, columns = {}, {}
        for lab, word in LABS.items():
            chosen = [i for i, name in enumerate(names) if word in name.split("_")]
            raw = np.asarray(data.data[:, chosen], np.float64)
            measurements[lab] = ((raw - raw.mean(0)) / raw.std(0)).astype(np.float32)
            columns[lab] = [names[i] for i in chosen]
        return cls(measurements, np.asarray(data.target, np.int64), columns)

    def write(self, folder: Path) -> dict[str, dict[str, Path]]:
        """Write each lab's files: lab -> dataset -> CSV file."""
        files: dict[str, dict[str, Path]] = {}
        for number, (lab, rows) in enumerate(self.measurements.items()):
            order = np.random.default_rng(number).permutation(len(rows))
            files[lab] = {"measurements": folder / f"{lab}.csv"}
            with files[lab]["measurements"].open("w", newline="") as file:
                table = csv.writer(file)
                table.writerow(["id", *self.columns[lab]])
                table.writerows([f"P{i:04d}", *(f"{x:.9g}" for x in rows[i])] for i in order.tolist())
        files[LABEL_LAB]["diagnoses"] = folder / "diagnoses.csv"
        with files[LABEL_LAB]["diagnoses"].open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["id", "benign"])
            table.writerows([f"P{i:04d}", label] for i, label in enumerate(self.labels.tolist()))
        return files


def encoders() -> dict[str, bytes]:
    """Each lab's encoder, an ONNX file."""
    return {
        lab: tabular_encoder(10, key_heads=KEY_HEADS, key_dim=DIM, value_dim=DIM, seed=seed)
        for seed, lab in enumerate(LABS)
    }


def head() -> bytes:
    """From what the queries saw to a diagnosis."""
    return classifier_head(queries=QUERIES, query_heads=QUERY_HEADS, value_dim=DIM, classes=2, seed=3)


def queries() -> Float32:
    """The initial learned queries, float32 [QUERIES, QUERY_HEADS, DIM]."""
    drawn = np.random.default_rng(4).standard_normal((QUERIES, QUERY_HEADS, DIM))
    return (0.1 * drawn).astype(np.float32)


def job() -> FusionJob:
    """The job the fleet trains."""
    return FusionJob(
        name="patients",
        encoders=tuple(Encoder(lab, "measurements", model, {"x": "*"}) for lab, model in encoders().items()),
        head=Head(LABEL_LAB, "diagnoses", head(), {"y": "benign"}, metrics=("correct",)),
        queries=queries(),
        optimizer=OptimizerSpec("adamw", {"lr": RATE, "weight_decay": DECAY}),
        rounds=ROUNDS,
        batch=BATCH,
        seed=SEED,
        holdout=HOLDOUT,
    )
