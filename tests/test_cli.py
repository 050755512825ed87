# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import yolo
from yolo import cli
from yolo.cfg.load import write_yaml
from yolo.cli import main
from yolo.command import REFUSED, VERBS, Command, parse
from yolo.errors import ConfigError, DataError
from yolo.tasks.spec import TASKS

# ---------------------------------------------------------------------- words


@pytest.mark.parametrize(
    "line",
    [
        "train epochs=3 lr0=1e-3",
        "epochs=3 train lr0=1e-3",
        "train epochs = 3 lr0 =1e-3",
        "train epochs= 3, lr0=1e-3,",
        "train --epochs=3 --lr0 = 1e-3 ,",
        "mode=train epochs=3 lr0=1e-3",
    ],
)
def test_spellings_of_the_same_command(line):
    assert parse(line.split()) == Command("train", (), {"epochs": 3, "lr0": 1e-3})


@pytest.mark.parametrize(
    ("argv", "options"),
    [
        (["classes=0,2"], {"classes": (0, 2)}),
        (["classes=[0, 2]"], {"classes": [0, 2]}),
        (["classes=[0,", "2]"], None),  # two words: the second means nothing
        (
            ["name=007", "project=1e3", "model=None"],
            {"name": "007", "project": "1e3", "model": None},
        ),
        (
            ["save=FALSE", "cache=Ram", "device=none"],
            {"save": False, "cache": "Ram", "device": None},
        ),
        (["source=rtsp://host/a?b=c"], {"source": "rtsp://host/a?b=c"}),
        (["source", "=", "a=b.jpg"], {"source": "a=b.jpg"}),
        (["source=my pictures/x.jpg"], {"source": "my pictures/x.jpg"}),
        (["--line-width=2"], {"line_width": 2}),
        (["epochs=3", "epochs=5"], {"epochs": 5}),
    ],
)
def test_values(argv, options):
    command = parse(["train", *argv])
    assert command.options == (options if options is not None else {"classes": "[0"})
    assert command.words == (() if options is not None else ("2]",))


@pytest.mark.parametrize("line", ["data=", "data= epochs=3", "--data=", "data = ", "data=,"])
def test_an_option_without_a_value(line):
    with pytest.raises(ConfigError, match="option 'data' has no value"):
        parse(["train", *line.split()])


@pytest.mark.parametrize("line", ["--help", "-h", "help", "train --help epochs=x", "help train"])
def test_help_is_found_anywhere(line):
    assert parse(line.split()) == Command("help")


def test_version_and_second_mode_word():
    assert parse(["--version"]) == parse(["-v"]) == parse(["version"]) == Command("version")
    assert parse(["train", "val"]) == Command("train", ("val",), {})  # val is an option there


@pytest.mark.parametrize("word", sorted(REFUSED))
def test_familiar_words_that_are_not_offered(word, capsys):
    assert main([word]) == 2
    assert REFUSED[word] in capsys.readouterr().err


# ---------------------------------------------------------------------- calls


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Record what the command makes of the facade."""
    seen: list[tuple[Any, ...]] = []

    class Facade:
        def __init__(self, model: str, task: str | None, sha256: str | None = None) -> None:
            seen.append(("load", model, task))

        def train(self, **options: Any) -> None:
            seen.append(("train", options))

        def val(self, **options: Any) -> None:
            seen.append(("val", options))

        def predict(self, **options: Any) -> Any:
            seen.append(("predict", options))
            for i in range(2):
                yield seen.append(("result", i))

    monkeypatch.setitem(vars(yolo), "YOLO", Facade)
    return seen


def test_train_call(calls):
    task = next(iter(TASKS))
    line = f"train {task} model=a.yaml data=d.yaml epochs=3 exist_ok --cos-lr cache"
    assert main(line.split()) == 0
    options = {"data": "d.yaml", "epochs": 3, "exist_ok": True, "cos_lr": True, "cache": True}
    assert calls == [("load", "a.yaml", task), ("train", options)]


def test_plugins_are_imported_first_and_handed_on(calls, tmp_path, capsys):
    first, second = tmp_path / "a.py", tmp_path / "b.py"
    first.write_text("LOADED = True\n", encoding="utf-8")
    second.write_text("1 / 0\n", encoding="utf-8")
    assert main(["val", "model=m.pt", f"plugins={first}"]) == 0
    assert calls == [("load", "m.pt", None), ("val", {"plugins": str(first)})]
    assert main(["val", "model=m.pt", f"plugins={first},{second}"]) == 2
    assert "b.py:1: ZeroDivisionError" in capsys.readouterr().err
    assert len(calls) == 2


def test_predict_saves_streams_and_draws_every_result(calls):
    assert main(["predict", "model=a.pt", "source=x.jpg", "stream=False"]) == 0
    assert calls[1:] == [
        ("predict", {"source": "x.jpg", "save": True, "stream": True}),
        ("result", 0),
        ("result", 1),
    ]
    assert main(["predict", "model=a.pt", "source=0", "save=False"]) == 0
    assert calls[5][1] == {"source": 0, "save": False, "stream": True}


def test_cfg_file_lies_below_the_command_line(calls, tmp_path):
    path = tmp_path / "c.yaml"
    write_yaml(path, {"epochs": 7, "lr0": 0.5, "model": "m.yaml", "mode": "train", "data": "d"})
    assert main(["train", f"cfg={path}", "epochs=9"]) == 0
    assert calls == [("load", "m.yaml", None), ("train", {"cfg": str(path), "epochs": 9})]
    write_yaml(path, {"resume": "last.pt", "save": False, "source": "a.jpg", "model": None})
    assert main(["train", f"cfg={path}"]) == 0
    assert calls[2:] == [("load", "last.pt", None), ("train", {"cfg": str(path), "resume": True})]
    assert main(["predict", f"cfg={path}", "model=m.pt"]) == 0
    assert calls[5] == ("predict", {"cfg": str(path), "save": False, "stream": True})


def test_a_mode_said_twice(calls):
    assert main(["mode=train", "train", "model=m.pt", "data=d"]) == 0
    assert calls[1] == ("train", {"data": "d"})


def test_every_verb_has_its_function():
    assert cli.COMMANDS.keys() == {*VERBS}


def test_resume_from_a_file_needs_no_model(calls):
    assert main(["train", "resume=last.pt"]) == 0
    assert calls == [("load", "last.pt", None), ("train", {"resume": True})]


def test_a_switch_of_another_task_reaches_the_facade_which_answers(calls):
    line = "detect predict retina_masks model=a.pt source=x.jpg"
    assert main(line.split()) == 0
    assert calls[0] == ("load", "a.pt", "detect")
    assert calls[1][1]["retina_masks"] is True


def test_task_by_option(calls):
    task = next(iter(TASKS))
    assert main(["val", "model=a.pt", f"task={task}", "data=x"]) == 0
    assert calls[0] == ("load", "a.pt", task)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train", "train needs model=..., as in: yolo train model=yolov8n.yaml data=shapes"),
        ("train model=a.yaml", "train needs data=..."),
        ("predict model=a.pt", "predict needs source=..."),
        ("track model=a.pt", "track needs source=..."),
        ("val", "val needs model=..."),
        ("trian model=a.yaml", "unknown word 'trian'. Similar: 'train'"),
        ("train modell model=a.yaml data=x", "unknown word 'modell'. Similar: 'model'"),
        ("train epochs model=a.yaml data=x", "option 'epochs' needs a value, such as epochs=100"),
        ("model=a.yaml data=x", "expected a mode (train, "),
        ("val model=a.pt task=segmentt data=x", "unknown task 'segmentt'"),
        ("train cfg=/no/such.yaml", "/no/such.yaml: expected a YAML file"),
        ("cfg trian", "unknown word 'trian'"),
        ("check", "check needs one dataset"),
        ("check a.yaml b.yaml", "check needs one dataset"),
        ("export model=a.pt", "'yolo export' isn't part of version"),
    ],
)
def test_mistakes_exit_with_2_and_one_line(calls, capsys, line, words):
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert words in err
    assert err.count("\n") == 1
    assert calls == []


@pytest.mark.parametrize(
    ("raised", "status", "text"),
    [
        (DataError("a.txt:3: bad row"), 2, "error: a.txt:3: bad row\n"),
        (FileNotFoundError(2, "No such file or directory", "x.jpg"), 2,
         "error: x.jpg: No such file or directory\n"),
        (PermissionError(13, "Permission denied", "/runs"), 2, "error: /runs: Permission denied\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)  # fmt: skip
def test_exit_statuses(monkeypatch, capsys, raised, status, text):
    def fail(*args: Any, **options: Any) -> None:
        raise raised

    monkeypatch.setitem(vars(yolo), "YOLO", SimpleNamespace(val=fail, __call__=fail))
    monkeypatch.setattr(cli, "_take_model", fail)
    assert main(["val", "model=a.pt"]) == status
    assert capsys.readouterr().err == text


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    def fail(*args: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "_take_model", fail)
    with pytest.raises(ZeroDivisionError):
        main(["val", "model=a.pt"])


def test_log_lines_go_to_the_standard_error_and_the_logger_is_left_as_it_was(monkeypatch, capsys):
    logger = logging.getLogger("yolo")
    before = (logger.level, list(logger.handlers))

    def talk(command: Command) -> int:
        logging.getLogger("yolo.engine").info("epoch 1")
        logging.getLogger("yolo.engine").warning("odd")
        return 0

    monkeypatch.setitem(cli.COMMANDS, "checks", talk)
    assert main(["checks"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("", "epoch 1\nwarning: odd\n")
    assert (logger.level, list(logger.handlers)) == before


def test_cfg_lists_options_by_mode_and_task(capsys):
    task = next(iter(TASKS))
    assert main(["cfg"]) == 0
    whole = capsys.readouterr().out
    assert main(["cfg", "train", task]) == 0
    part = capsys.readouterr().out
    assert all(name in whole for name in ("imgsz", "lr0", "vid_stride", "save_json"))
    assert "lr0" in part
    assert f"{task} train" in part
    assert "vid_stride" not in part


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        ("train", ("overlap_mask", "mask_ratio", "kobj", "pose", "dropout", "erasing", "dfl")),
        ("segment", ("retina_masks", "overlap_mask")),
        ("classify", ("imgsz .* 224 ", "auto_augment")),
        ("obb val", ("conf .* 0.01 ",)),
    ],
)
def test_cfg_has_what_tasks_add_and_what_they_change(words, rows, capsys):
    assert main(["cfg", *words.split()]) == 0
    out = capsys.readouterr().out
    for row in rows:
        assert re.search(rf"^{row}", out, re.MULTILINE)
    own = {f"{task} {mode}" for task in TASKS for mode in ("train", "val", "predict")}
    titles = own & {*out.splitlines()}
    assert titles
    assert all(set(words.split()) <= {*title.split()} for title in titles)


def test_checks_prints_the_machine(capsys):
    assert main(["checks"]) == 0
    assert "torch" in capsys.readouterr().out


def test_check_lists_problems_of_a_real_dataset(tmp_path, capsys):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "images" / "a.png")
    label = tmp_path / "labels" / "a.txt"
    label.write_text("0 0.5 0.5 0.2 0.2\n", encoding="utf-8")
    data = tmp_path / "d.yaml"
    write_yaml(data, {"train": "images", "val": "images", "names": ["x"]})
    assert main(["check", str(data)]) == 0
    assert capsys.readouterr().out == ""

    label.write_text("0 0.5 0.5 0.2 0.2\n7 0.5 0.5 0.2 0.2\n", encoding="utf-8")
    assert main(["check", f"data={data}", f"task={next(iter(TASKS))}"]) == 1
    out = capsys.readouterr().out
    assert all(line.startswith(f"{label}:2: ") for line in out.splitlines())
    assert len(out.splitlines()) == 2  # train and val are the same folder


# ---------------------------------------------------------------------- processes


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "yolo", *argv], capture_output=True, text=True)


@pytest.mark.processes
def test_help_and_version_import_nothing_heavy():
    code = (
        "import sys\nfrom yolo.cli import main\n"
        "status = main(['--help']) + main(['version']) + main([])\n"
        "heavy = {'torch', 'pydantic', 'rich', 'yaml', 'numpy', 'cv2'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "yolo [TASK] MODE key=value" in done.stdout
    assert yolo.__version__ in done.stdout


@pytest.mark.processes
def test_options_table_imports_no_torch():
    words = ["cfg", *TASKS]
    code = f"import sys\nfrom yolo.cli import main\nmain({words})\nsys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.processes
def test_module_and_mistake_as_a_process():
    assert run("version").stdout.strip() == yolo.__version__
    done = run("train", "model=yolov8n.yaml")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: train needs data=")


@pytest.mark.processes
def test_a_closed_pipe_is_no_fault():
    with subprocess.Popen(
        [sys.executable, "-m", "yolo", "cfg"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
