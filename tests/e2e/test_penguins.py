"""A real table as it is, in three files, trained over three nodes by the job file of docs/data.md.

penguins.csv is that of palmerpenguins (Horst, Hill, Gorman 2020; Palmer Station LTER), unchanged, CC0.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from fleets import command
from onnx import TensorProto, helper, numpy_helper
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from edge_attention import Client, read_job
from edge_attention.cli.local_fleet import AGGREGATOR, LocalFleet

HERE = Path(__file__).parent
ISLANDS = ("Biscoe", "Dream", "Torgersen")
SPECIES = ("Adelie", "Chinstrap", "Gentoo")
NUMBERS = ("bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g")
FILLED = (44, 17, 200, 4200)
CENTRE = np.array([44, 17, 200, 4200, 0.5, 0.5], np.float32)
SCALE = np.array([5.5, 2, 14, 800, 0.5, 0.5], np.float32)


def model():
    """Logistic regression on numbers of about one: the scale is a rough constant, the same everywhere."""
    values = {
        "centre": CENTRE,
        "scale": SCALE,
        "weights": np.zeros((6, 3), np.float32),
        "bias": np.zeros(3, np.float32),
    }
    nodes = [
        helper.make_node("Sub", ["x", "centre"], ["centred"]),
        helper.make_node("Div", ["centred", "scale"], ["scaled"]),
        helper.make_node("Gemm", ["scaled", "weights", "bias"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "penguins",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return made.SerializeToString()


@pytest.fixture
def folder(tmp_path):
    """The job file of the page, its model, and a file an island: as it is, with the rows of its own."""
    header, *lines = (HERE / "penguins.csv").read_text("utf-8").splitlines(keepends=True)
    for island in ISLANDS:
        own = [line for line in lines if f",{island}," in line]
        (tmp_path / f"{island}.csv").write_text(header + "".join(own))
    (tmp_path / "penguins.onnx").write_bytes(model())
    page = (HERE.parents[1] / "docs/data.md").read_text("utf-8")
    (tmp_path / "job.toml").write_text(re.search(r"```toml\n(.*?)```", page, re.DOTALL)[1])
    return tmp_path


def table(drop=False):
    """x [344, 6] in float64, with the job's values for what is missing, and y [344]; read by Python's csv.

    `drop`: without the rows that lack one.
    """
    x, y = [], []
    with (HERE / "penguins.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if drop and "NA" in (*(row[name] for name in NUMBERS), row["sex"]):
                continue
            numbers = [
                fill if row[name] in ("", "NA") else float(row[name])
                for name, fill in zip(NUMBERS, FILLED, strict=True)
            ]
            male = row["sex"] == "male"
            x.append([*numbers, not male, male])
            y.append(SPECIES.index(row["species"]))
    return np.array(x, np.float64), np.array(y)


def dropped(text):
    """The job with rows left out that lack a value, in place of the values that it names."""
    text = re.sub(r"\[columns\.(bill|flipper|body)_\w+\]\nmissing = [0-9]+\n", "", text)
    return "missing_values = 'drop'\n" + text.replace('missing = "female"\n', "")


@pytest.mark.parametrize("drop", [False, True])
def test_the_species_over_three_nodes_as_well_as_on_one_machine(folder, drop):
    x, y = table(drop)
    assert len(x) == (333 if drop else 344)
    if drop:
        file = folder / "job.toml"
        file.write_text(dropped(file.read_text()))
    scaled = StandardScaler().fit_transform(x)
    yardstick = LogisticRegression(max_iter=1000).fit(scaled, y).score(scaled, y)
    job = read_job(folder / "job.toml")
    with LocalFleet(folder / "state") as fleet:
        fleet.start_aggregator()
        with Client(fleet.address) as client:
            flags = sorted({graph.release for graph in client.plan(job) if graph.release})
            for island in ISLANDS:
                fleet.start_node(island, data={"penguins": folder / f"{island}.csv"}, allow_release=flags)
            run = client.train(job)
            rounds = []
            for record in run:
                rounds.append(record)
                if drop and record.number == 40:
                    # What nodes told before the first round holds for the rest, in whatever life.
                    fleet.kill(AGGREGATOR)
                    fleet.start_aggregator()
            found = run.parameters()
            if not drop:
                # Rows that are here, read as the run's job says, are what arrays made by hand are.
                swapped = (folder / "job.toml").read_text().replace('"female", "male"', '"male", "female"')
                (folder / "swapped.toml").write_text(swapped)
                for file in ("", "job.toml", "swapped.toml"):
                    given = ("--job", str(folder / file)) if file else ()
                    rows = ("--rows", str(HERE / "penguins.csv"), "--json")
                    flags = ("--aggregator", fleet.address, "predict", run.id, *given, *rows)
                    done = command("edge_attention.cli.main", *flags)
                    if file == "swapped.toml":
                        assert done.returncode == 1, done.stdout
                        assert "column sex has its categories in another order: male, female" in done.stderr
                        continue
                    assert done.returncode == 0, done.stderr
                    said = np.array(json.loads(done.stdout)["outputs"]["logits"])
                    np.testing.assert_allclose(said, run.predict({"x": x})["logits"], atol=1e-5)
    assert [record.number for record in rounds] == list(range(1, 121))
    said = "11 rows lack a value and are left out: 5 of node Biscoe, 1 of node Dream, 5 of node Torgersen"
    assert (said in run.info.notes) == drop, run.info.notes
    assert set(rounds[0].nodes) == set(ISLANDS)
    logits = (x - CENTRE) / SCALE @ found["weights"].astype(np.float64) + found["bias"]
    accuracy = float((logits.argmax(1) == y).mean())
    assert yardstick > 0.95
    assert accuracy >= yardstick - 0.02, (accuracy, yardstick)
