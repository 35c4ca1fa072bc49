"""What a scenario says of each node."""

from __future__ import annotations

import pytest

from edge_attention.core.errors import InvalidArgument
from edge_attention.simulation.scenario import NodeCourse, courses, read_scenario

NAMES = [f"node-{n}" for n in range(1, 21)]


def test_shares_numbers_and_names():
    scenario = {
        "seed": 3,
        "slow": [{"nodes": "10%", "times": 4.0}],
        "failing": [{"nodes": 5, "every": 20, "down": 3}],
        "late": [{"nodes": ["node-1", "node-20"], "after": 10}],
    }
    found = courses(scenario, NAMES)
    assert list(found) == NAMES
    assert sum(course.times == 4 for course in found.values()) == 2
    assert sum((course.every, course.down) == (20, 3) for course in found.values()) == 5
    assert [name for name, course in found.items() if course.after == 10] == ["node-1", "node-20"]
    assert found == courses(scenario, NAMES)
    assert found != courses({**scenario, "seed": 4}, NAMES)
    assert len({course.seed for course in found.values()}) == 20


def test_no_scenario_is_nodes_that_behave():
    assert courses({}, ["a"]) == {"a": NodeCourse()}


@pytest.mark.parametrize(
    ("scenario", "said"),
    [
        ({"slwo": []}, r"no 'slwo'; it has seed and the tables \[\[slow\]\]"),
        ({"seed": -1}, "seed is -1"),
        ({"slow": {"nodes": 1}}, r"slow is no list of tables; write \[\[slow\]\]"),
        ({"slow": [{"nodes": 1}]}, "number 1: 'times' missing; it says nodes, times"),
        ({"slow": [{"nodes": 1, "time": 2}]}, "no 'time'"),
        ({"slow": [{"nodes": 1, "times": 0.5}]}, "times is 0.5; it must be a number at least 1"),
        ({"failing": [{"nodes": 1, "every": 0, "down": 1}]}, "every is 0; it must be a number above 0"),
        ({"late": [{"nodes": "120%", "after": 1}]}, "nodes is '120%'; give a number up to 20"),
        ({"late": [{"nodes": 21, "after": 1}]}, "nodes is 21"),
        ({"late": [{"nodes": True, "after": 1}]}, "nodes is True"),
        ({"late": [{"nodes": ["nobody"], "after": 1}]}, "no node 'nobody'; they are node-1 to node-20"),
    ],
)
def test_what_cannot_be_is_said(scenario, said):
    with pytest.raises(InvalidArgument, match=said):
        courses(scenario, NAMES)


def test_a_file_that_is_none(tmp_path):
    file = tmp_path / "s.toml"
    file.write_text("[[slow]\n")
    with pytest.raises(InvalidArgument, match="cannot be read as a scenario"):
        read_scenario(file)
