"""Seeds are taken from the results that have the most of them."""

import json

import pytest

from gdregs.papers.tables.cells import cell_from_rows
from gdregs.papers.tables.earlier import is_result, read_earlier
from gdregs.vae.config import Config

CONFIG = Config(dataset="digits", epochs=1)
IMAGES = {"digits": [1500, 297]}


def write(path, config, num_seeds, *, date, earlier=(), images=IMAGES):
    row = {"epoch": 1, "test_bound": -1.0, "images_per_second": 1.0}
    cell = cell_from_rows(config, range(num_seeds), [[row]] * num_seeds)
    content = {
        "experiment": path.stem, "command": "c", "date": date, "hardware": "h", "versions": {},
        "earlier": list(earlier), "datasets": images, "cells": [cell.to_dict()], "resampled": [],
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return path


def test_the_result_with_the_most_seeds_is_taken(tmp_path):
    before = {"command": "b", "date": "0", "hardware": "h", "versions": {}, "seeds": [0]}
    few = write(tmp_path / "few.json", CONFIG, 2, date="1")
    more = write(tmp_path / "more.json", CONFIG, 3, date="2", earlier=[before])
    too_many = write(tmp_path / "too-many.json", CONFIG, 6, date="3")
    found = read_earlier([few, more, too_many], [CONFIG], 5, IMAGES, tmp_path / "runs")
    assert found.seeds() == {CONFIG: (0, 1, 2)}
    assert found.paths == (more,)
    assert [origin["date"] for origin in found.origins] == ["0", "2"]
    assert found.origins[-1]["seeds"] == [0, 1, 2]


def test_cells_come_from_several_results_and_each_is_named_once(tmp_path):
    other = Config(dataset="digits", epochs=1, posterior_estimator="stl")
    one = write(tmp_path / "table1.json", CONFIG, 1, date="1")
    two = write(tmp_path / "table2.json", other, 2, date="2")
    found = read_earlier([one, two], [CONFIG, other], 5, IMAGES, tmp_path / "runs")
    assert found.seeds() == {CONFIG: (0,), other: (0, 1)}
    assert [origin["date"] for origin in found.origins] == ["1", "2"]


@pytest.mark.parametrize("images", [{"digits": [1, 1]}, {}])
def test_other_images_are_not_taken(tmp_path, images):
    path = write(tmp_path / "digits.json", CONFIG, 2, date="1", images=images)
    found = read_earlier([path], [CONFIG], 5, IMAGES, tmp_path / "runs")
    assert (found.cells, found.origins, found.paths) == ({}, (), ())


@pytest.mark.parametrize(
    "text",
    [
        '{"experiment": "digits"',
        "[]",
        '{"experiment": "toy"}',
        '{"experiment": "digits", "cells": [{}]}',
        '{"experiment": "digits", "cells": [{"config": {"unknown": 1}, "curves": {"epoch": []}}]}',
    ],
)
def test_a_file_that_is_no_result_is_told_apart(tmp_path, text):
    (tmp_path / "digits.json").write_text(text)
    assert not is_result(tmp_path / "digits.json")
    assert not is_result(tmp_path / "missing.json")
    assert is_result(write(tmp_path / "digits.json", CONFIG, 2, date="1"))
