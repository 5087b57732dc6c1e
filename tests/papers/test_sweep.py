"""`gdregs reproduce` for image models: what is done is skipped, here and in jobs."""

import contextlib
import io
import json
import shutil

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
    # Jobs compile as tests do.
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    return tmp_path


def reproduce(*arguments):
    return main(["reproduce", "digits", *TINY, "--epochs", "1", *map(str, arguments)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Results and runs of two seeds, and what was printed."""
    root, out = tmp_path_factory.mktemp("trained"), io.StringIO()
    with contextlib.redirect_stdout(out):
        assert reproduce("--out", root / "results", "--runs", root / "runs") == 0
    return root, out.getvalue()


@pytest.fixture
def whole(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "whole")
    return tmp_path / "whole"


def cell_of(folder):
    (cell,) = json.loads((folder / "digits.json").read_text())["cells"]
    return cell


@pytest.mark.slow
def test_a_result_says_its_scale_and_holds_its_seeds(trained):
    root, out = trained
    assert "Scaled down: 1 of 120 epochs, 2 of 5 seeds, 64 of 1,500 training images" in out
    assert "0 groups of seeds are done, 1 to do in" in out
    assert "executor inline" in out
    with Image.open(root / "results" / "digits-curves.png") as image:
        assert min(image.size) > 300
    cell = cell_of(root / "results")
    assert cell["seeds"] == [0, 1]
    assert cell["curves"]["epoch"] == [1]
    folder = root / "runs" / "digits-conditional-L1-dregs+gdregs-64images"
    config = json.loads((folder / "seeds0-1" / "seed1" / "config.json").read_text())["config"]
    assert (config["seed"], config["gradient_samples"], config["epochs"]) == (1, 0, 1)


@pytest.mark.slow
def test_what_is_done_is_skipped(capsys, whole):
    folder = whole / "runs" / "digits-conditional-L1-dregs+gdregs-64images" / "seeds0-1"
    before = (folder / "checkpoint.eqx").stat().st_mtime_ns
    where = "--out", whole / "results", "--runs", whole / "runs"
    assert reproduce(*where) == 0
    assert "1 groups of seeds are done, 0 to do" in capsys.readouterr().out
    assert (folder / "checkpoint.eqx").stat().st_mtime_ns == before
    # The runs of the seeds are runs like any other.
    assert main(["evaluate", str(folder / "seed1"), "--num-samples", "60"]) == 0
    assert "test KL, z1" in capsys.readouterr().out
    # Results of a grid do not go over a file that is none.
    (whole / "results" / "digits.json").write_text("{}")
    assert reproduce(*where) == 2
    assert (whole / "results" / "digits.json").read_text() == "{}"


@pytest.mark.slow
def test_seeds_are_added_to_a_result_whose_runs_are_gone(capsys, whole, tmp_path):
    assert reproduce("--seeds", 1, "--out", "added", "--runs", "gone") == 0
    capsys.readouterr()
    assert reproduce("--out", "added", "--runs", "new") == 0
    out = capsys.readouterr().out
    assert "Seeds that added/digits.json has are not trained again." in out
    folder = next((tmp_path / "new").iterdir())
    assert [group.name for group in folder.iterdir()] == ["seeds1-1"]
    added, together = cell_of(tmp_path / "added"), cell_of(whole / "results")
    assert added["seeds"] == [0, 1]
    bounds = added["last"]["test_bound"], together["last"]["test_bound"]
    np.testing.assert_allclose(*bounds, rtol=1e-4)

    def earlier(folder):
        return json.loads((folder / "digits.json").read_text())["earlier"]

    (origin,) = earlier(tmp_path / "added")
    assert origin["seeds"] == [0]
    assert origin.keys() >= {"command", "date", "hardware", "versions"}
    assert earlier(whole / "results") == []
    # Run folders come first: where they have all, nothing is taken from the result.
    assert reproduce("--out", "added", "--runs", whole / "runs") == 0
    assert "not trained again" not in capsys.readouterr().out
    assert earlier(tmp_path / "added") == []
    # Results of other folders count where they are named.
    assert reproduce("--out", "other", "--runs", "newest", "--earlier", "added") == 0
    out = capsys.readouterr().out
    assert "Seeds that added/digits.json has are not trained again." in out
    assert "0 groups of seeds are done, 0 to do" in out
    assert cell_of(tmp_path / "other")["last"] == cell_of(tmp_path / "added")["last"]


def test_earlier_results_that_are_none_are_refused(capsys, tmp_path):
    assert reproduce("--out", "other", "--earlier", "nowhere") == 2
    assert "--earlier: nowhere has no results of" in capsys.readouterr().err
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "digits.json").write_text('{"experiment": "digits"')
    assert reproduce("--out", "other", "--earlier", "broken") == 2
    assert "broken/digits.json is not a result of" in capsys.readouterr().err


@pytest.mark.slow
def test_jobs_of_the_local_executor(capsys, tmp_path):
    assert reproduce("--executor", "local", "--vmap", "on") == 0
    assert "seeds under vmap" in capsys.readouterr().out
    (cell,) = json.loads((tmp_path / "results" / "digits.json").read_text())["cells"]
    assert len(cell["last"]["test_bound"]) == 2
    assert list((tmp_path / "runs" / "papers" / "jobs").glob("*_log.out"))


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
