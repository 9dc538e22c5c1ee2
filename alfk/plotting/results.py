"""Reading results: the lines and settings of a data set's runs."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from alfk.data.split import UNOFFICIAL
from alfk.experiment.folder import RunFolder
from alfk.experiment.records import BASELINES, Record, read_results
from alfk.experiment.trial import Trial
from alfk.method.acquisition import METHODS
from alfk.support.errors import DamagedFileError, UserError
from alfk.support.files import damaged, read_json


@dataclasses.dataclass
class Results:
    """The results of one data set.

    Attributes:
        folder: the folder of the runs.
        settings: those of the first run that has some.
        left_out: a message about each results line that was left out.
        remark: appended to every title.
    """

    folder: Path
    records: list[Record]
    settings: dict[str, Any]
    left_out: Sequence[str] = ()
    remark: str = ""

    def check_settings(self) -> None:
        """Raises UserError if two lines of a run were made with different settings."""
        first: dict[tuple[Any, ...], Record] = {}
        for record in self.records:
            if "made_with" not in record:  # of an earlier version
                continue
            method = record["method"]
            own_recipe = None if method in METHODS or method in BASELINES else method  # has settings of its own
            other = first.setdefault((record["run"], record["ensemble"], own_recipe), record)
            if record["made_with"] != other["made_with"]:
                names = " and ".join(dict.fromkeys(Trial.of(each).label() for each in (other, record)))
                raise UserError(
                    f"{self.folder / 'run'}{record['run']}: lines of {names} were made with different settings; "
                    "--methods, -ir or --init draws those of one"
                )

    @property
    def runs(self) -> list[int]:
        return sorted({record["run"] for record in self.records})

    @property
    def dataset(self) -> str:
        """The name of the data set, which is mostly the folder's."""
        return self.settings.get("dataset", self.folder.name)

    @property
    def minority(self) -> tuple[int, ...]:
        """The minority classes of records that do not state theirs."""
        return tuple(self.settings.get("minority") or ())

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; empty if they are numbers."""
        return tuple(self.settings.get("class_names") or ())

    @property
    def sources(self) -> tuple[str | None, ...]:
        """`Split.source` of training and test images; empty if the data set has none."""
        return tuple(self.settings.get("data") or ())

    @property
    def validation(self) -> int | None:
        """The number of validation images; None if they are not drawn from the training images."""
        return sum(self.settings.get("validation_per_class") or ()) or None

    @property
    def holdout(self) -> float:
        """The share of the validation images that was kept for test."""
        return self.settings.get("holdout", 0.0)


def read_runs(folder: Path, start: int, stop: int | None, warn: Callable[[str], None]) -> Results:
    """All records under `folder`/run<N>, N from `start` to before `stop`.

    Args:
        warn: called with a message about a line that is left out or a damaged manifest.

    Raises:
        UserError: a file that cannot be read, or runs with different settings.
    """
    records, settings, left_out = [], {}, []
    for run in sorted(run_folders(folder, start, stop), key=lambda run: run.path.name):
        found, settings[run.path], problems = _read_run(run)
        records += found
        left_out += problems
    for text in left_out:
        warn(f"warning: {text}")
    first = next(filter(None, settings.values()), {})
    for path, other in settings.items():
        differing = [key for key in first if key != "device" and other.get(key, first[key]) != first[key]]
        if differing:
            raise UserError(
                f"{path} was made with other settings than the first run ({', '.join(differing)}): --run-start and "
                "--run-stop draw those of one"
            )
    sources = [source or "" for other in settings.values() for source in other.get("data") or ()]
    remark = " (not the official files)" if any(source.startswith(UNOFFICIAL) for source in sources) else ""
    return Results(folder, records, first, left_out, remark)


def run_folders(folder: Path, start: int = 0, stop: int | None = None) -> Iterator[RunFolder]:
    """The folders run<N> in `folder`, N from `start` to before `stop`."""
    for path in folder.glob("run*"):
        number = path.name.removeprefix("run")
        if number.isdecimal() and int(number) >= start and (stop is None or int(number) < stop):
            yield RunFolder(folder, int(number))


def _read_run(run: RunFolder) -> tuple[list[Record], dict[str, Any], list[str]]:
    """The records of a run, the settings in its manifest, and messages about what is wrong with them."""
    manifest, lines = run.path / "manifest.json", run.path / "results.jsonl"
    settings, problems = {}, []
    try:
        found = read_json(manifest).get("settings") if manifest.exists() else {}
        if not isinstance(found, dict):
            raise damaged(manifest, "no settings")
        settings = found
    except DamagedFileError as problem:
        problems.append(f"{str(problem).partition(':')[0]}; the next command that works on the run makes it again")
    if not os.path.lexists(lines):  # there is none yet; a link that leads nowhere is an error
        return [], settings, problems + run.without_line([])
    expected = {"run": run.number, **{key: settings[key] for key in ("dataset", "seed") if key in settings}}
    records, wrong = read_results(lines, expected)
    return records, settings, problems + (wrong or run.without_line(records))
