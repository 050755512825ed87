# SPDX-License-Identifier: Apache-2.0
"""The rules of the house, read off the syntax trees: who imports whom, what nobody may do.

CONTRIBUTING.md gives the reasons.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import yolo
from yolo.tasks.spec import TASKS

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "yolo").rglob("*.py"))
ALL_FILES = sorted(
    path
    for folder in ("yolo", "tests", "examples", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
)

RANKS = {
    "errors": 0, "registry": 1, "plugins": 1, "cfg": 1, "nn": 2, "data": 3, "engine": 4,
    "backends": 4, "export": 4, "tasks": 5, "tasks.spec": 5, "tasks.detect": 6, "tasks.*": 7,
    "machine": 8, "options": 8, "weights": 8, "exported": 8, "api": 8, "ensemble": 9,
    "command": 9, "tuning": 8, "cli": 9, "__main__": 10,
}  # fmt: skip
"""Parts of the package from the ground up: a part imports its own rank and lower ones."""

WITHOUT_TORCH = (
    "__init__", "__main__", "api", "cli", "command", "exported", "options", "weights", "errors",
    "registry", "plugins", "machine", "cfg/*",
    "tasks/__init__", "tasks/spec", "tasks/*/__init__", "tasks/*/config", "tasks/*/predict",
    "data/images", "data/letterbox", "data/sample", "data/sources", "nn/rotated",
    "engine/containers", "engine/draw", "engine/events", "engine/fetch", "engine/folders",
    "engine/nms", "engine/predictor", "engine/progress", "engine/records", "engine/results",
    "engine/rotated_nms", "engine/tensorboard", "engine/tensors", "engine/text", "engine/tracking",
    "engine/writer",
    "backends/__init__", "backends/exported", "backends/metadata", "backends/onnx",
    "backends/openvino", "backends/quiet", "export/formats",
)  # fmt: skip
"""What predicting from an exported file needs; torch may be absent there."""

TESTED_ELSEWHERE = {
    "yolo/__main__.py": "tests/test_cli.py",
    "yolo/tasks/detect/config.py": "tests/cfg/test_schema.py",
    "yolo/tasks/pose/config.py": "tests/tasks/test_pose_train.py",
    "yolo/tasks/segment/config.py": "tests/tasks/test_segment_data.py",
    # The loop, what it is made of and what it leaves behind are one thing to a user.
    "yolo/engine/trainer.py": "tests/test_train.py",
    "yolo/engine/build.py": "tests/test_train.py",
    "yolo/engine/record.py": "tests/test_train.py",
    "yolo/engine/parts.py": "tests/test_train.py",
    "yolo/engine/resume.py": "tests/test_resume.py",
    "yolo/tasks/detect/train.py": "tests/test_train.py",
    "yolo/weights.py": "tests/test_api.py",
}
"""Files without a mirror in tests/, and where they are tested."""


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def walk(node: ast.AST, inside: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Yield the nodes that run, and whether they stand in a function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for other in child.orelse:
                yield from walk(ast.Module([other], []), inside)
            continue
        deeper = inside or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield child, deeper
        yield from walk(child, deeper)


MODULES = {module_of(path): path for path in FILES}


def imported(node: ast.AST, module: str) -> list[str]:
    """Name the modules that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    assert node.level == 0, f"{module}: a relative import"
    found = []
    for alias in node.names:
        whole = f"{node.module}.{alias.name}"
        public = yolo._PUBLIC.get(alias.name) if node.module == "yolo" else None
        found.append(whole if whole in MODULES else public or str(node.module))
    return found


def imports_of(path: Path, everywhere: bool = True) -> set[str]:
    """Name the modules that a file imports, with or without those that its functions import."""
    module = module_of(path)
    return {
        name
        for node, inside in walk(tree_of(path))
        if everywhere or not inside
        for name in imported(node, module)
    }


def part_of(module: str) -> str:
    """Return the key of `module` in RANKS."""
    parts = module.split(".")[1:]
    if parts[0] != "tasks":
        return parts[0]
    name = ".".join(parts[:2])
    return name if name in RANKS else "tasks.*"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_go_one_way(path):
    module = module_of(path)
    own = {name for name in imports_of(path) if name.startswith("yolo.")}
    if module == "yolo":
        assert not own
        return
    for name in own:
        assert RANKS[part_of(name)] <= RANKS[part_of(module)], f"{module} imports {name}"
        if part_of(module) == "tasks.*" and part_of(name) == "tasks.*":
            assert module.split(".")[2] == name.split(".")[2], f"{module} imports {name}"
    if part_of(module) in {"data", "engine", "backends"}:
        assert not [name for name in own if name.startswith("yolo.tasks")]


def test_no_module_imports_itself_over_others():
    arrows = {name: imports_of(path) & MODULES.keys() for name, path in MODULES.items()}
    left = dict(arrows)
    while True:
        leaves = {name for name, targets in left.items() if not (targets - {name}) & left.keys()}
        if not leaves:
            break
        left = {name: targets for name, targets in left.items() if name not in leaves}
    assert not left, f"a cycle among {sorted(left)}"


def docstrings(tree: ast.Module) -> set[int]:
    """Return the ids of constants that are documentation: strings that stand alone."""
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


TASK_NAMES = {"detect", "segment", "classify", "pose", "obb"}
FIELDS = {("results.py", "obb")}  # the familiar name of the boxes' container, too


@pytest.mark.parametrize(
    "path", [p for p in FILES if "tasks" not in p.relative_to(ROOT).parts], ids=relative
)
def test_no_task_is_named_outside_of_tasks(path):
    tree = tree_of(path)
    documentation = docstrings(tree)
    named = [
        f"line {node.lineno}: {node.value!r}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and id(node) not in documentation
        and node.value in TASK_NAMES
        and (path.name, node.value) not in FIELDS
    ]
    assert not named


def test_the_task_names_above_are_all():
    assert set(TASKS) <= TASK_NAMES


def mirror(path: Path) -> Path:
    """Return where a file's tests stand: tests/tasks/test_detect_head.py for tasks/detect/head."""
    parts = path.relative_to(ROOT / "yolo").with_suffix("").parts
    if parts[0] == "tasks":
        return ROOT / "tests" / "tasks" / f"test_{'_'.join(parts[1:])}.py"
    return ROOT.joinpath("tests", *parts[:-1], f"test_{parts[-1]}.py")


@pytest.mark.parametrize("path", [p for p in FILES if p.name != "__init__.py"], ids=relative)
def test_every_file_has_its_tests(path):
    elsewhere = TESTED_ELSEWHERE.get(relative(path))
    assert (ROOT / elsewhere if elsewhere else mirror(path)).is_file()
    assert not (elsewhere and mirror(path).is_file()), "tested elsewhere and here: mend the list"


def test_every_test_file_has_something_to_test():
    """A test below tests/<part>/ mirrors a file, so that a file's move takes its tests along."""
    mirrors = {mirror(path) for path in FILES}
    nested = {path for part in (ROOT / "tests").iterdir() for path in part.glob("test_*.py")}
    allowed = {ROOT / "tests/tasks/test_external_task.py"}
    assert not [relative(path) for path in nested - mirrors - allowed]


@pytest.mark.parametrize("path", ALL_FILES, ids=relative)
def test_every_file_says_its_licence_and_has_a_name_that_tells(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert path.stem not in {"utils", "util", "misc", "helpers", "helper", "common"}
    if path in FILES:
        assert ast.get_docstring(tree_of(path))


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


FORBIDDEN = {
    "print": "use logging",
    "eval": "data may not run",
    "exec": "data may not run",
    "compile": "data may not run",
    "__import__": "use importlib, where the user has named the file",
    "breakpoint": "left over",
    "pickle.load": "a pickle runs code",
    "pickle.loads": "a pickle runs code",
    "marshal.loads": "data may not run",
    "yaml.load": "use yolo.cfg.load.read_yaml",
    "yaml.unsafe_load": "use yolo.cfg.load.read_yaml",
    "yaml.full_load": "use yolo.cfg.load.read_yaml",
    "os.system": "nothing is executed behind the user's back",
    "os.popen": "nothing is executed behind the user's back",
    "os.putenv": "the environment is the user's",
    "cv2.setNumThreads": "the threads are the user's",
    "torch.set_num_threads": "the threads are the user's",
    "torch.set_printoptions": "the settings are the user's",
    "np.set_printoptions": "the settings are the user's",
    "warnings.filterwarnings": "the filters are the user's; use warnings.catch_warnings",
    "warnings.simplefilter": "the filters are the user's",
    "logging.basicConfig": "logging is the user's",
    "torch.hub.load": "nothing is downloaded",
}
"""Calls that nothing in the package makes, and why."""

ALLOWED = {
    # In a loader's worker, which is the package's own process.
    ("yolo/data/workers.py", "cv2.setNumThreads"),
    ("yolo/engine/trainer.py", "torch.compile"),  # compile=True
    ("yolo/data/workers.py", "torch.set_num_threads"),
    # With a loader of its own, which is PyYAML's safe one with further checks.
    ("yolo/cfg/load.py", "yaml.load"),
}

BAD_ARGUMENTS = {("allow_pickle", True), ("weights_only", False), ("shell", True)}


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_nothing_forbidden_is_called(path):
    name = relative(path)
    for called, call in calls(path):
        if (name, called) not in ALLOWED:
            assert called not in FORBIDDEN, f"line {call.lineno}: {called}: {FORBIDDEN[called]}"
        for keyword in call.keywords:
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            assert (keyword.arg, value) not in BAD_ARGUMENTS, f"line {call.lineno}"
        if called == "torch.load":
            assert "weights_only" in {k.arg for k in call.keywords}, f"line {call.lineno}"
        if called == "np.load":
            assert "allow_pickle" in {k.arg for k in call.keywords}, f"line {call.lineno}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_nothing_forbidden_is_imported(path):
    roots = {name.split(".")[0] for name in imports_of(path)}
    if relative(path) == "yolo/engine/fetch.py":  # downloads what the user names
        roots -= {"http", "urllib"}
    assert not roots & {"pickle", "shelve", "marshal", "requests", "urllib", "http", "socket",
                        "ftplib", "subprocess", "ultralytics", "thop", "dill"}  # fmt: skip
    assert "matplotlib.pyplot" not in imports_of(path)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_the_environment_is_only_read(path):
    if relative(path) == "yolo/backends/quiet.py":  # sets a variable while a runtime is imported
        return
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.Delete)):
            targets = [node.target] if isinstance(node, ast.AugAssign) else node.targets
            written = [ast.unparse(target) for target in targets]
            assert not [text for text in written if text.startswith("os.environ")]
    changing = ("os.environ.update", "os.environ.setdefault", "os.environ.pop")
    assert not [called for called, _ in calls(path) if called in changing]


def without_torch() -> list[Path]:
    found = [p for pattern in WITHOUT_TORCH for p in (ROOT / "yolo").glob(f"{pattern}.py")]
    assert len(found) >= len(WITHOUT_TORCH)
    return found


@pytest.mark.parametrize("path", without_torch(), ids=relative)
def test_importing_a_file_of_the_light_half_brings_no_torch(path):
    """Follow the imports at module level: none may arrive at torch."""
    seen: set[str] = set()
    waiting = [module_of(path)]
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        assert module.split(".")[0] not in {"torch", "torchvision"}, f"over {sorted(seen)}"
        if module in MODULES:
            waiting += imports_of(MODULES[module], everywhere=False)


@pytest.mark.processes
def test_predicting_works_where_torch_is_absent():
    """Tasks, sources, letterbox, NMS, containers and the predictor on arrays alone."""
    code = """
import sys
sys.modules["torch"] = sys.modules["torchvision"] = None   # importing them raises ImportError
import numpy as np
import yolo.api, yolo.cli, yolo.engine.draw
from yolo import TASKS

class Backend:
    names, stride, imgsz, channels, task, dynamic = {0: "a", 1: "b"}, 32, (64, 64), 3, "", True
    def __call__(self, images):
        assert images.shape == (1, 64, 64, 3), images.shape
        rows = np.zeros((1, 6, 3), np.float32)
        rows[0, :4] = np.array([[32, 32, 20, 10], [33, 32, 20, 10], [10, 32, 8, 8]]).T
        rows[0, 4:] = np.array([[0.9, 0.1], [0.8, 0.1], [0.1, 0.7]]).T
        return rows

spec = next(iter(TASKS.values()))
predictor = spec.predictor(spec.predict_config(imgsz=64, all_scores=True), spec, Backend())
(result,) = predictor(np.zeros((64, 64, 3), np.uint8))
assert isinstance(result.boxes.data, np.ndarray)
assert result.boxes.cls.tolist() == [0, 1]
assert result.boxes.xyxy.tolist() == [[22, 27, 42, 37], [6, 28, 14, 36]]
assert result.scores.shape == (2, 2)
assert result.plot().shape == (64, 64, 3)
assert "1 a, 1 b" in result.verbose()
assert result.summary()[0]["name"] == "a"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_reference_numbers_are_described_used_and_small():
    folder = ROOT / "tests" / "golden"
    described = (folder / "README.md").read_text(encoding="utf-8")
    tests = "".join(path.read_text(encoding="utf-8") for path in ALL_FILES if "tests" in path.parts)
    files = [path for path in folder.iterdir() if path.name != "README.md"]
    assert sum(path.stat().st_size for path in files) < 10_000_000
    for path in files:
        assert f"`{path.name}`" in described, path.name
        assert f'"{path.name}"' in tests, f"no test uses {path.name}"
    for name in set(re.findall(r"`([\w.]+\.(?:npz|json))`", described)):
        assert (folder / name).is_file(), name
    for name in set(re.findall(r"`(tests/[\w./]+)`", described)):
        assert (ROOT / name).exists(), name
