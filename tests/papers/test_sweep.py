"""`gdregs reproduce` for image models: what is done is skipped, here and in jobs."""

import json

import numpy as np
import pytest
import submitit  # noqa: F401  # sets up logging when imported, which must not happen inside a test
from PIL import Image

from gdregs.cli import main
from gdregs.papers.grids.grid import GRIDS, Scale
from gdregs.papers.grids.sweep import Job, Where, plan, run_jobs, scale_cells
from gdregs.papers.image_models import Only
from gdregs.vae.errors import UserError

TINY = ["--seeds", "2", "--subset", "64", "--layers", "1", "--pairs", "dregs+gdregs"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def reproduce(*arguments):
    return main(["reproduce", "digits", *TINY, *arguments])


@pytest.mark.slow
def test_what_is_done_is_skipped_and_what_is_not_continues(capsys, tmp_path):
    assert reproduce("--epochs", "1") == 0
    out = capsys.readouterr().out
    assert "Scaled down: 1 of 120 epochs, 2 of 5 seeds, 64 of 1,500 training images" in out
    assert "0 groups of seeds are done, 1 to do in runs/papers, executor inline" in out
    with Image.open(tmp_path / "results" / "digits-curves.png") as image:
        assert min(image.size) > 300
    (cell,) = json.loads((tmp_path / "results" / "digits.json").read_text())["cells"]
    assert cell["seeds"] == [0, 1]
    assert cell["curves"]["epoch"] == [1]
    folder = tmp_path / "runs" / "papers" / "digits-conditional-L1-dregs+gdregs-64images"
    config = json.loads((folder / "seeds0-1" / "seed1" / "config.json").read_text())["config"]
    assert (config["seed"], config["gradient_samples"], config["epochs"]) == (1, 0, 1)

    before = (folder / "seeds0-1" / "checkpoint.eqx").stat().st_mtime_ns
    assert reproduce("--epochs", "1") == 0
    assert "1 groups of seeds are done, 0 to do" in capsys.readouterr().out
    assert (folder / "seeds0-1" / "checkpoint.eqx").stat().st_mtime_ns == before
    # The runs of the seeds are runs like any other.
    assert main(["evaluate", str(folder / "seeds0-1" / "seed1"), "--num-samples", "60"]) == 0
    assert "test KL, z1" in capsys.readouterr().out
    # Results of a grid do not go over a file that is none.
    (tmp_path / "results" / "digits.json").write_text("{}")
    assert reproduce("--epochs", "1") == 2
    assert (tmp_path / "results" / "digits.json").read_text() == "{}"


@pytest.mark.slow
def test_seeds_are_added_to_a_result_whose_runs_are_gone(capsys, tmp_path):
    def result(folder):
        return json.loads((tmp_path / folder / "digits.json").read_text())

    few, more = ["--epochs", "1", "--seeds", "1"], ["--epochs", "1", "--seeds", "2"]
    assert reproduce(*few, "--out", "added", "--runs", "gone") == 0
    capsys.readouterr()
    assert reproduce(*more, "--out", "added", "--runs", "new") == 0
    out = capsys.readouterr().out
    assert "Seeds that added/digits.json has are not trained again." in out
    folder = next((tmp_path / "new").iterdir())
    assert [group.name for group in folder.iterdir()] == ["seeds1-1"]
    assert reproduce(*more, "--out", "whole", "--runs", "all") == 0
    (added,), (whole,) = result("added")["cells"], result("whole")["cells"]
    assert added["seeds"] == [0, 1]
    np.testing.assert_allclose(added["last"]["test_bound"], whole["last"]["test_bound"], rtol=1e-4)
    (origin,) = result("added")["earlier"]
    assert origin["seeds"] == [0]
    assert origin.keys() >= {"command", "date", "hardware", "versions"}
    assert result("whole")["earlier"] == []
    # Run folders come first: where they have all, nothing is taken from the result.
    assert reproduce(*more, "--out", "added", "--runs", "all") == 0
    assert "not trained again" not in capsys.readouterr().out
    assert result("added")["earlier"] == []
    # Results of other folders count where they are named.
    assert reproduce(*more, "--out", "other", "--runs", "newest", "--earlier", "added") == 0
    out = capsys.readouterr().out
    assert "Seeds that added/digits.json has are not trained again." in out
    assert "0 groups of seeds are done, 0 to do" in out
    (other,) = result("other")["cells"]
    assert other["last"] == result("added")["cells"][0]["last"]
    assert reproduce(*more, "--out", "other", "--earlier", "nowhere") == 2
    assert "--earlier: nowhere has no results of" in capsys.readouterr().err
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "digits.json").write_text('{"experiment": "digits"')
    assert reproduce(*more, "--out", "other", "--earlier", "broken") == 2
    assert "broken/digits.json is not a result of" in capsys.readouterr().err
    # Images of another number are other images.
    content = result("added")
    content["datasets"]["digits"] = [1, 1]
    (tmp_path / "added" / "digits.json").write_text(json.dumps(content))
    assert reproduce(*more, "--out", "added", "--runs", "newer") == 0
    assert "not trained again" not in capsys.readouterr().out


@pytest.mark.slow
def test_jobs_of_the_local_executor(capsys, tmp_path):
    assert reproduce("--epochs", "1", "--executor", "local", "--vmap", "on") == 0
    assert "seeds under vmap" in capsys.readouterr().out
    (cell,) = json.loads((tmp_path / "results" / "digits.json").read_text())["cells"]
    assert len(cell["last"]["test_bound"]) == 2
    assert list((tmp_path / "runs" / "papers" / "jobs").glob("*_log.out"))
    assert reproduce("--epochs", "1", "--executor", "local") == 0
    assert "0 to do" in capsys.readouterr().out


@pytest.mark.slow
def test_a_job_that_fails_is_named_and_its_logs_too(tmp_path):
    where = Where(tmp_path / "runs", executor="local")
    cells, _ = scale_cells(Only((), (1,)).choose(GRIDS["digits"].cells)[:1], Scale(1, 1, 64), None)
    jobs, done = plan(cells, 1, where)
    assert (len(jobs), done) == (1, 0)
    jobs[0].group.folder.parent.mkdir(parents=True)
    jobs[0].group.folder.write_text("in the way")
    with pytest.raises(UserError, match=r"1 of 1 jobs failed; the first, digits-.*choose another"):
        run_jobs([Job(*jobs[0])], where)


def test_an_executor_that_does_not_know_an_option(tmp_path):
    where = Where(tmp_path, executor="local", options={"colour": 3})
    with pytest.raises(UserError, match="--executor local"):
        run_jobs([], where)
