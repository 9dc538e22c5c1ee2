"""The folder of one run: the paths of its files, its locks, its manifest, and the lines of its results."""

import contextlib
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alfk.experiment.records import RESTORED, Record, key_of, line_of, read_results
from alfk.experiment.trial import Trial, selection_suffix
from alfk.support import distributed
from alfk.support.checkpoints import load_checkpoint
from alfk.support.errors import DamagedFileError, UserError
from alfk.support.files import FIX, atomic, locked, read_json, write_json

FORMAT = 3  # of the files of a run; a folder of another format is not continued


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
        except FileExistsError as problem:
            raise UserError(f"{problem.filename} is a file in the place of a folder: remove it") from None
        except OSError as problem:
            place = problem.filename or self.path
            raise UserError(f"cannot write to {place}: {problem.strerror}; choose another --save-folder") from None

    # Paths

    def data(self, name: str) -> Path:
        return self.path / "data" / f"{name}.npy"

    def initial(self, distortion: str, unsupervised: bool, member: int = 0, select: str = "test") -> Path:
        """The random model, or the rotation model for `select` (the random model does not depend on it)."""
        which = f"{distortion}_E_{member}" if member else distortion
        if unsupervised:
            return self.path / "checkpoint" / f"init_unsup_batch_0_{which}{selection_suffix(select)}.pt"
        return self.path / "checkpoint" / f"init_batch_0_{which}.pt"

    def checkpoint(self, kind: str, trial: Trial, b: int, size: int) -> Path:
        """The file of a finished iteration ("best"), a waiting query ("query") or an interrupted training ("part")."""
        return self.path / "checkpoint" / f"{kind}_{trial.stem(b, size)}.pt"

    def export(self, kind: str, trial: Trial, b: int, size: int, suffix: str) -> Path:
        """A file of an iteration for people: "index_list" or "query"."""
        return self.path / f"{kind}_{trial.stem(b, size)}{suffix}"

    def descriptors(self, side: str, trial: Trial, b: int, size: int) -> Path:
        return self.path / "descr" / f"{side}_{trial.stem(b, size)}.npy"

    # Locks

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
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self.path / f".{name}.lock", wait=False))
            except BlockingIOError:
                raise UserError(f"another process is working on {name} in {self.path}") from None
            yield

    def _is_worked_on(self) -> bool:
        """Whether one of the locks is held."""
        for path in self.path.glob(".?*.lock"):
            try:
                with locked(path, wait=False):
                    pass
            except BlockingIOError:
                return True
        return False

    # Manifest

    def manifest(self) -> tuple[dict[str, Any], list[str]]:
        """The manifest's settings and sessions, empty for a new run, and messages about what was wrong with it.

        A lost or damaged manifest is replaced by the settings that the run's checkpoints were made with.
        """
        path = self.path / "manifest.json"
        try:
            if path.exists():
                manifest = read_json(path)
                right = isinstance(manifest.get("settings"), dict) and isinstance(manifest.get("sessions"), list)
                if right and manifest.get("run") == self.number:
                    return manifest, []
                if right:
                    self._check_name(manifest.get("run"))
                raise DamagedFileError(f"{path} is of another run" if right else f"{path} is damaged")
            damage = f"{path} is lost"
        except DamagedFileError as problem:
            damage = str(problem).partition(":")[0]
        settings = dict(ChainMap(*self._settings_of_checkpoints()))
        warnings = [f"{damage}: its settings were taken from the run's checkpoints"]
        empty = {"run": self.number, "format": FORMAT, "settings": settings, "sessions": []}
        return empty, warnings if settings or path.exists() or (self.path / "results.jsonl").exists() else []

    def _settings_of_checkpoints(self) -> list[dict[str, Any]]:
        """The settings of each checkpoint; those of earlier versions lack what the settings do."""
        return [about.get("settings", {}) | about.get("behaviour", {}) for about in self._descriptions()]

    def _descriptions(self) -> Iterator[dict[str, Any]]:
        """Those of the run's checkpoints."""
        for path in sorted((self.path / "checkpoint").glob("*.pt")):
            with contextlib.suppress(UserError):  # whoever needs a damaged one will say so
                yield load_checkpoint(path, {}, weights=False)[1]

    def _check_name(self, run: object) -> None:
        """Raises UserError if the folder holds another run, not only the manifest of one: it was renamed."""
        found = {about.get("run") for about in self._descriptions()}
        if found == {run}:
            raise UserError(f"{self.path} holds run {run}: rename it to run{run}, or give another --save-folder")

    def check_is_known(self, key: str, value: object) -> None:
        """Raises UserError if no model of the run was made with a setting of the manifest, which then is wrong."""
        if not any(made.get(key) == value for made in self._settings_of_checkpoints()):
            path = self.path / "manifest.json"
            raise UserError(f"{path} says {key} = {value}, but no model of the run was made so: {FIX}")

    def check_manifest(self, settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """The manifest, empty for a new run, and warnings about it.

        A setting with which nothing was made, and nothing is being made, does not count: it is left by a training that
        diverged, or the manifest is another run's.

        Raises:
            UserError: a setting in it differs, or the folder is of another format.
        """
        manifest, warnings = self.manifest()
        self.check_format(manifest)
        differing = [key for key, value in settings.items() if manifest["settings"].get(key, value) != value]
        if differing and not self._is_worked_on() and not self._lost():
            made_with = self._settings_of_checkpoints()
            if all(made.get(key, settings[key]) == settings[key] for made in made_with for key in differing):
                found = ", ".join(f"{key} = {manifest['settings'][key]}" for key in differing)
                warning = f"{self.path / 'manifest.json'} had {found}, but no model of the run was made so: replaced"
                return {**manifest, "settings": dict(ChainMap(*made_with))}, [warning]
        check_settings(self.path, manifest["settings"], settings)
        return manifest, warnings

    def check_format(self, manifest: Mapping[str, Any]) -> None:
        """Raises UserError if the folder is of another format."""
        if manifest.get("format") != FORMAT:
            raise UserError(
                f"{self.path} was made by another version, whose files differ: delete it, or give another "
                "--save-folder, with --initial first"
            )

    @distributed.main_process_only
    def record_session(self, settings: Mapping[str, Any], session: Mapping[str, Any]) -> None:
        """Write the settings, which must not change, into the manifest and append the session."""
        with locked(self.path / ".lock"):
            manifest, _ = self.check_manifest(settings)
            manifest["settings"] |= settings
            manifest["sessions"].append(dict(session))
            write_json(self.path / "manifest.json", manifest)

    # Results

    def results(self) -> list[Record]:
        """The records of the finished iterations, without the lines that are damaged."""
        return self.read_results()[0]

    def read_results(self, **expected: Any) -> tuple[list[Record], list[str]]:
        """The same, and a message about each line that is left out; nothing for a new run.

        Args:
            expected: entries that the records must have besides the run's number.
        """
        path = self.path / "results.jsonl"
        return read_results(path, {"run": self.number, **expected}) if path.exists() else ([], [])

    def without_line(self, records: Sequence[Record]) -> list[str]:
        """A message about the finished iterations, by their checkpoints, that are not among the records."""
        of = ((Trial.of(record), record["b"], record["labelled"]) for record in records)
        known = {self.checkpoint("best", *each).name for each in of}
        names = sorted(path.name for path in (self.path / "checkpoint").glob("best_*.pt") if path.name not in known)
        if not names:
            return []
        what = names[0] if len(names) == 1 else f"{len(names)} iterations, the first {names[0]},"
        return [f"{self.path / 'results.jsonl'} has no line of {what}; {RESTORED}"]

    def _lost(self) -> list[Record]:
        """The records of finished iterations whose checkpoints are not there."""
        of = ((record, Trial.of(record), record["b"], record["labelled"]) for record in self.results())
        return [record for record, *each in of if not self.checkpoint("best", *each).exists()]

    @distributed.main_process_only
    def add_results(self, records: Sequence[Record]) -> None:
        """Write lines of finished iterations, in place of earlier lines about the same ones."""
        with locked(self.path / ".lock"):
            expected = {key: records[0][key] for key in ("dataset", "seed")}
            lines = {key_of(record): record for record in self.read_results(**expected)[0]}
            lines |= {key_of(record): record for record in records}
            with atomic(self.path / "results.jsonl") as file:
                file.write("".join(map(line_of, lines.values())).encode())


REPEAT = "repeat that, or give another --save-folder, with --initial first"


def check_settings(what: Path, recorded: Mapping[str, Any], now: Mapping[str, Any], fix: str = REPEAT) -> None:
    """Raises UserError if a run folder or a file in it was made with other settings; missing ones are not compared.

    Args:
        fix: what to do about it, for the message. The settings of the run were compared before those of a file in it,
            so that such a file is the one that is wrong.
    """
    if recorded and recorded.get("protocol") != now.get("protocol"):
        raise UserError(
            f"{what} was made by an earlier version, whose protocol differs: delete it, or give another --save-folder"
        )
    for key, value in now.items():
        was = recorded.get(key, value)
        if was != value and key in ("data", "labels"):
            raise UserError(
                f"{what} was made with other image files, some of which were added, removed or changed since then: "
                f"restore them, or delete it, or give another --save-folder (made with {was}, now {value})"
            )
        if was != value:
            raise UserError(f"{what} was made with {key} = {was}, this command says {value}: {fix}")
