"""The folder of one run: names of its files, manifest and results."""

import contextlib
import dataclasses
import fcntl
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from alfk import distributed
from alfk.errors import UserError
from alfk.files import atomic, locked, read_json, write_json

Record = dict[str, Any]


BASELINE = "all_train"  # in place of a method: training on the whole distorted pool, a line in figures

INITS = {  # initial model -> prefix of file names
    "rotation": "unsup_",  # from the rotation model, its last linear layer new (docs/method.md, section 4)
    "rotation_conv": "unsup_conv_",  # from the rotation model's convolutions, every linear layer new
    "random": "",
}


@dataclasses.dataclass(frozen=True)
class Trial:
    """One curve of a figure: a method on one distortion of the pool from one kind of initial model.

    Attributes:
        init: a key of INITS.
        select: the rule for the epoch that an iteration keeps: best on "test" (the paper's protocol), best on "val", or
            "last".
        copies: how images are perturbed (a key of perturbation.STRATEGIES), for methods whose pseudo-labels come from
            perturbed copies; None for all others.
    """

    ir: float
    method: str
    length: int
    ensemble: int = 1
    nr: float = 0.0
    init: str = "rotation"
    select: str = "test"
    copies: str | None = None

    @property
    def unsupervised(self) -> bool:
        """Whether it starts from a rotation model."""
        return self.init != "random"

    @property
    def distortion(self) -> str:
        return f"ir_{self.ir:g}_nr_{self.nr:g}"

    def stem(self, b: int, size: int) -> str:
        """The common part of all file names of AL iteration b with `size` labelled images."""
        parts = f"{INITS[self.init]}batch_{b}_size_{size}_{self.distortion}_sub_{self.method}_L_{self.length}"
        members = f"_E_{self.ensemble}" if self.ensemble > 1 else ""
        copies = f"_copies_{self.copies}" if self.copies not in (None, "degrees") else ""
        return f"{parts}{members}{copies}{selection_suffix(self.select)}"

    @property
    def name(self) -> str:
        """The trial's name, the same for all its iterations."""
        return self.stem(0, 0).replace("batch_0_size_0_", "")

    def label(self) -> str:
        """A short name with distortion and initial model, e.g. "Rzg_pz L80 ir=100 rotation"."""
        return f"{self.short()} ir={self.ir:g} {self.init}"

    def short(self) -> str:
        """The method with the attributes that vary within a figure, e.g. "Rzg_pz L80", "varR E4"."""
        length, members = self.length, self.ensemble
        copies = f" {self.copies}" if self.copies not in (None, "degrees") else ""
        return self.method + (f" L{length}" if length else "") + (f" E{members}" if members > 1 else "") + copies

    def initial_command(self) -> str:
        """The command that makes its initial models."""
        parts = ["run.py --initial", f"-ir {self.ir:g}"]
        parts += [f"-nr {self.nr:g}"] if self.nr else []
        parts += [f"-ens {self.ensemble} --methods {self.method}"] if self.ensemble > 1 else []
        parts += [f"--select {self.select}"] if self.select != "test" else []
        return " ".join(parts)

    def facts(self) -> dict[str, Any]:
        """The trial as entries of records, headers and checkpoints."""
        about = {"method": self.method, "L": self.length, "ir": self.ir, "nr": self.nr, "init": self.init}
        about |= {"ensemble": self.ensemble, "select": self.select}
        return about | ({"copies": self.copies} if self.copies else {})

    def describes(self, record: Record) -> bool:
        """Whether a results record belongs to this trial."""
        return record.get("copies") == self.copies and all(record.get(k) == v for k, v in self.facts().items())

    @classmethod
    def of(cls, record: Record) -> "Trial":
        """The trial that a results record belongs to. Raises KeyError if an entry is missing."""
        INITS[record["init"]]
        method, length, ensemble = record["method"], record["L"], record["ensemble"]
        start = record["ir"], method, length, ensemble, record["nr"], record["init"]
        return cls(*start, record["select"], record.get("copies"))


def selection_suffix(select: str) -> str:
    """The suffix of file names for a rule of --select; empty for the paper's protocol."""
    return "" if select == "test" else f"_select_{select}"


class RunFolder:
    """`<root>/run<N>` and the paths of its files."""

    def __init__(self, root: Path, number: int):
        self.path, self.number = root / f"run{number}", number

    @distributed.main_process_only
    def create(self) -> None:
        """Make the folders. Raises UserError if they cannot be written."""
        try:
            for part in ("data", "checkpoint", "descr"):
                (self.path / part).mkdir(parents=True, exist_ok=True)
            (self.path / ".lock").touch()
        except OSError as problem:
            raise UserError(f"cannot write to {self.path}: {problem.strerror}; choose another --save-folder") from None

    def data(self, name: str) -> Path:
        return self.path / "data" / f"{name}.npy"

    def initial(self, distortion: str, unsupervised: bool, member: int = 0, select: str = "test") -> Path:
        """The random model, or the rotation model for `select` (the random model does not depend on it)."""
        which = f"{distortion}_E_{member}" if member else distortion
        if unsupervised:
            return self.path / "checkpoint" / f"init_unsup_batch_0_{which}{selection_suffix(select)}.pt"
        return self.path / "checkpoint" / f"init_batch_0_{which}.pt"

    def checkpoint(self, trial: Trial, b: int, size: int) -> Path:
        return self.path / "checkpoint" / f"best_{trial.stem(b, size)}.pt"

    def index_list(self, trial: Trial, b: int, size: int) -> Path:
        return self.path / f"index_list_{trial.stem(b, size)}.npy"

    def query(self, trial: Trial, b: int, size: int) -> Path:
        """The images that iteration b chose, with why each was chosen."""
        return self.path / f"query_{trial.stem(b, size)}.npy"

    def descriptors(self, side: str, trial: Trial, b: int, size: int) -> Path:
        return self.path / "descr" / f"{side}_{trial.stem(b, size)}.npy"

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the run's lock `name` inside the block; it is also released when the process ends, however it ends.

        Raises:
            UserError: another process holds it.
        """
        with contextlib.ExitStack() as stack:
            distributed.main_process_only(stack.enter_context)(self._locked(name))
            yield

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with open(self.path / f".{name}.lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another process is working on {name} in {self.path}") from None
            yield

    def check_manifest(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The manifest, empty for a new run. Raises UserError if a setting recorded in it differs, or it is damaged."""
        path = self.path / "manifest.json"
        manifest = read_json(path) if path.exists() else {"settings": {}, "sessions": []}
        if not isinstance(manifest.get("settings"), dict) or not isinstance(manifest.get("sessions"), list):
            raise UserError(f"{path} is damaged: delete the run's folder and start again")
        if manifest["settings"] and manifest["settings"].get("protocol") != settings.get("protocol"):
            raise UserError(
                f"{self.path} was made by an earlier version, whose protocol differs: delete it, or give another "
                "--save-folder"
            )
        for key, now in settings.items():
            was = manifest["settings"].get(key, now)
            if was != now and key == "data":
                raise UserError(
                    f"{self.path} was made with other image files; since then some were added, removed or changed: "
                    f"bring those back, or delete it, or give another --save-folder (made with {was}, now {now})"
                )
            if was != now:
                raise UserError(
                    f"{self.path} was made with {key} = {was}, this command says {now}: "
                    "use the same or another --save-folder"
                )
        return manifest

    @distributed.main_process_only
    def record_session(self, settings: Mapping[str, Any], session: Mapping[str, Any]) -> None:
        """Write the settings, which must not change, into the manifest and append the session."""
        with locked(self.path / ".lock"):
            manifest = self.check_manifest(settings)
            manifest["settings"] |= settings
            manifest["sessions"].append(dict(session))
            write_json(self.path / "manifest.json", manifest)

    def results(self) -> list[Record]:
        """The records of the finished iterations. A last line truncated by a crash is left out."""
        return read_results(self.path / "results.jsonl")

    @distributed.main_process_only
    def add_result(self, record: Record) -> None:
        """Append a record, replacing one of the same trial and iteration."""
        key = ("method", "L", "ir", "nr", "init", "ensemble", "select", "copies", "b")
        with locked(self.path / ".lock"):
            found = self.results()
            if record in found:
                return
            kept = [old for old in found if any(old.get(k) != record.get(k) for k in key)]
            with atomic(self.path / "results.jsonl") as file:
                file.write("".join(json.dumps(line) + "\n" for line in [*kept, record]).encode())


def read_results(path: Path, skipped: Callable[[str], None] | None = None) -> list[Record]:
    """The records of a results file, empty if it does not exist; a truncated last line is left out.

    Args:
        skipped: called with a message about a line that is left out.
    Raises:
        UserError: another line is not a record.
    """
    if not path.exists():
        return []
    lines = path.read_text(errors="replace").splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise UserError(f"{path}, line {number}: not a results record; remove that line") from None
            if skipped is not None:
                skipped(f"{path}, line {number}: cut short and left out; its command makes it anew")
    return records
