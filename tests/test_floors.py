"""The floors of alfk: imports run downwards only, without a circle, and no data set is named."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from tests.helpers import ROOT

FLOORS = ("support", "data", "networks", "method", "rivals", "experiment", "own", "plotting", "cli")


def modules() -> dict[str, Path]:
    """Name -> file of every module of alfk but the package's own face."""
    found = {}
    for file in (ROOT / "alfk").glob("*/**/*.py"):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = file
    return found


def imports(path: Path) -> set[str]:
    """The modules of alfk that a file names in its import statements, wherever they stand in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("alfk"):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("alfk")}
    return found


def test_no_import_runs_up():
    upwards = []
    for name, path in modules().items():
        floor = FLOORS.index(name.split(".")[1])
        for target in imports(path):
            above = target.count(".") and FLOORS.index(target.split(".")[1]) > floor
            upwards += [f"{name} -> {target}"] if above or (target == "alfk" and name != "alfk") else []
    assert not upwards, f"imports that run up, of {' < '.join(FLOORS)}: {', '.join(upwards)}"


def test_no_circle():
    known = modules()
    arrows = {name: {t for t in imports(path) if t in known and t != name} for name, path in known.items()}
    try:
        list(TopologicalSorter(arrows).static_order())
    except CycleError as problem:
        raise AssertionError("modules that import each other: " + " -> ".join(problem.args[1])) from None


def test_no_data_set_is_named():
    named = {
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in modules().values()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"(?i:mnist|svhn|imagenet)|\bDIGITS\b", line)
    }
    assert not named, "\n".join(sorted(named))
