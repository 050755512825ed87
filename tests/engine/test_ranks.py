# SPDX-License-Identifier: Apache-2.0
"""Two processes on gloo do what one does. Each test starts torch's launcher once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import nano
from yolo import TASKS, YOLO
from yolo.engine.checkpoint import load_checkpoint
from yolo.engine.ranks import Ranks
from yolo.errors import ConfigError

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.processes

RUN = """
import json, os, sys
from pathlib import Path
import torch
from yolo import YOLO

def freeze_norms(trainer):
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()

def note(trainer):
    rows.append({name: float(value) for name, value in trainer.loss_items.items()})

rows = []
network, data, options, out = sys.argv[1:]
model = YOLO(network)
model.add_callback("on_train_batch_start", freeze_norms)
model.add_callback("on_train_batch_end", note)
metrics = model.train(data=data, **json.loads(options))
rank = os.environ.get("RANK", "0")
Path(out, f"rank{rank}.json").write_text(json.dumps([metrics.results_dict, rows]))
"""


def launch(folder, *words, ranks=2, code=RUN, check=True, how=("--standalone",)):
    """Run a script by torch's launcher."""
    script = folder / "run.py"
    script.write_text(code)
    return subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", *how,
            f"--nproc-per-node={ranks}", str(script), *map(str, words),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=folder, capture_output=True, text=True, timeout=240, check=check,
    )  # fmt: skip


def run_here(network, data, options, folder):
    """Run the same script in this process."""
    words = ["run.py", str(network), str(data), json.dumps(options), str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        exec(compile(RUN, "run.py", "exec"), {"__name__": "__main__"})


TASK_NAMES = [pytest.param(n, marks=[] if n == "segment" else pytest.mark.slow) for n in TASKS]


@pytest.mark.parametrize("task", TASK_NAMES)
def test_two_ranks_train_and_validate_as_one(task, tmp_path):
    """With BatchNorm frozen, as each rank has its own statistics; batches of uneven shares."""
    spec = TASKS[task]
    few = {"train": 5, "val": 5} if spec.outputs.boxes else {}
    network, data = nano.task_network(tmp_path, spec), nano.task_data(tmp_path, spec, **few)
    more = {"optimizer": "SGD", "lr0": 0.01, "nbs": 4, "epochs": 2, "batch": 3, "seed": 1}
    found = {}
    for ranks in (1, 2):
        folder = tmp_path / f"of{ranks}"
        folder.mkdir()
        options = nano.options(folder, "run", **more)
        if ranks == 1:
            run_here(network, data, options, folder)
        else:
            launch(folder, network, data, json.dumps(options), folder)
        saved = load_checkpoint(folder / "run" / "weights" / "last.pt")
        files = sorted(path.name for path in folder.glob("rank*.json"))
        assert files == [f"rank{i}.json" for i in range(ranks)]
        told = [json.loads((folder / name).read_text()) for name in files]
        assert all(one == told[0] for one in told)  # every rank knows the same numbers
        found[ranks] = saved, told[0]
    (one, (scores, rows)), (two, (others, more_rows)) = found[1], found[2]
    for name, value in one.weights.items():
        torch.testing.assert_close(two.weights[name], value, rtol=1e-4, atol=1e-6)
    assert others == pytest.approx(scores, abs=1e-6)
    for losses, more_losses in zip(rows, more_rows, strict=True):
        assert more_losses == pytest.approx(losses, rel=1e-4, abs=1e-6)
    for row, other in zip(one.history, two.history, strict=True):
        known = {k: v for k, v in row.items() if k != "time"}
        assert {k: v for k, v in other.items() if k != "time"} == pytest.approx(
            known, rel=1e-4, abs=1e-6
        )


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_run_with_its_message(network, data, tmp_path):
    code = """
import os, sys
from yolo import YOLO

def fail(trainer):
    if trainer.ranks.rank == 1 and trainer.iteration == 1:
        raise RuntimeError("the second rank gave up")

network, data, folder = sys.argv[1:]
model = YOLO(network)
model.add_callback("on_train_batch_end", fail)
model.train(data=data, epochs=50, imgsz=64, batch=4, workers=0, project=folder, plots=False)
"""
    start = time.monotonic()
    done = launch(tmp_path, network, data, tmp_path, code=code, check=False)
    assert done.returncode != 0
    assert time.monotonic() - start < 60
    assert "the second rank gave up" in done.stderr
    last = tmp_path / "train" / "weights" / "last.pt"
    YOLO(last).train(resume=True, epochs=1, time=None)  # what was saved goes on, alone


STOPPED = """
import json, os, signal, sys
from yolo import YOLO

def stop(trainer):
    if trainer.iteration == 7 and trainer.ranks.rank == 1:
        os.kill(os.getpid(), getattr(signal, how))

how, model, data, options = sys.argv[1:]
model = YOLO(model)
if how.startswith("SIG"):
    model.add_callback("on_train_batch_end", stop)
model.train(data=data, **json.loads(options))
"""


@pytest.mark.slow
def test_two_ranks_that_were_stopped_go_on_as_if_nothing_had_happened(network, data, tmp_path):
    """In the middle of an epoch and of a window: asked to end, and killed."""

    def run(how, name, *, model=network, check=True, **changes):
        options = nano.options(tmp_path, name, nbs=16, warmup_epochs=0, save_every=2, **changes)
        done = launch(tmp_path, how, model, data, json.dumps(options), code=STOPPED, check=check)
        last = tmp_path / name / "weights" / "last.pt"
        return done, last, load_checkpoint(last)

    def rows(saved):
        return [{k: v for k, v in row.items() if k != "time"} for row in saved.history]

    _, _, whole = run("whole", "whole")
    for how, reached in (("SIGTERM", 7), ("SIGKILL", 6)):
        done, last, cut = run(how, how, check=False)
        assert done.returncode
        assert cut.state["iteration"] == reached
        assert cut.state["accumulated"]
        _, _, ended = run("resume", how, model=last, resume=True)
        assert nano.same(whole.weights, ended.weights)
        assert nano.same(whole.state["model"], ended.state["model"])
        assert rows(whole) == rows(ended)


def test_alone_everything_is_as_it_was():
    ranks = Ranks()
    value = torch.ones(2)
    assert ranks.main
    assert ranks.share(3) == ranks.largest(3) == 3
    assert ranks.gather("a") == ["a"]
    with ranks.joint():
        assert ranks.sum(value) is value
    with ranks.main_first():
        ranks.wait()
    model = torch.nn.Linear(1, 1)
    assert ranks.wrap(model, torch.device("cpu"), sync_bn=True) is model
    ranks.world = 2
    with pytest.raises(ConfigError, match="sync_bn=True needs CUDA"):
        ranks.wrap(model, torch.device("cpu"), sync_bn=True)


FAILING = """
import os, sys
from yolo import YOLO

def fail(trainer):
    if trainer.iteration == 5 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        raise RuntimeError("once")

network, data, folder = sys.argv[1:]
model = YOLO(network)
model.add_callback("on_train_batch_start", fail)
model.train(data=data, epochs=3, imgsz=64, batch=4, nbs=8, workers=0, plots=False, save_every=2,
            device="cpu", project=folder, name="run")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [["--standalone"], ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]]
)
def test_a_restarted_job_goes_on_from_its_last_checkpoint(network, data, tmp_path, how):
    """In one rank, whose statistics are all kept, it ends as if nothing had happened."""
    stranger = nano.train(tmp_path, "run", network=network, data=data, epochs=1).trainer.last
    untouched = stranger.read_bytes()
    how = [*how, "--max-restarts=1"]
    launch(tmp_path, network, data, tmp_path, ranks=1, code=FAILING, how=how)
    assert sorted(path.name for path in tmp_path.glob("run*/")) == ["run", "run-2"]
    assert stranger.read_bytes() == untouched
    whole = nano.train(
        tmp_path, "whole", network=network, data=data, epochs=3, save_every=2, device="cpu"
    )
    ended = load_checkpoint(tmp_path / "run-2" / "weights" / "last.pt")
    assert nano.same(nano.weights_of(whole), ended.weights)
    assert len(ended.history) == 3
