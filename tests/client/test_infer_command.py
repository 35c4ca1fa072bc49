"""What `edge-attention infer` prints and writes of an answer, whatever its outputs are and are called."""

from __future__ import annotations

import numpy as np

from edge_attention.cli.array_files import write_outputs
from edge_attention.cli.deployed import _print_answer
from edge_attention.client.models import ModelResult

OUTPUTS = {
    "file": np.array([[3, 1]]),  # as NumPy's savez calls its own argument
    "allow_pickle": np.array([True, False]),
    "bytes": np.array([250], np.uint8),
    "empty": np.zeros((0, 2), np.int64),
    "scalar": np.float32(2.5).reshape(()),
    "y": np.array([1.5, np.nan], np.float32),
}
ANSWER = ModelResult(OUTPUTS, True, 1.0, "", 1, {"client": 0.1, "all": 0.1})


def test_an_answer_is_written_whatever_its_outputs_are_called(tmp_path):
    write_outputs(tmp_path / "answer.npz", ANSWER)
    with np.load(tmp_path / "answer.npz") as found:
        assert set(found) == set(OUTPUTS)
        for name, array in OUTPUTS.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)


def test_an_answer_of_whole_numbers_and_of_booleans_is_printed(capsys):
    _print_answer("m", ANSWER, None)
    told = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert told["file"][-2:] == ["1", "3"]
    assert told["bytes"][-2:] == ["250", "250"]
    assert told["empty"][-2:] == ["-", "-"]
    assert told["scalar"][-2:] == ["2.5", "2.5"]
