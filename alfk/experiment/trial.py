"""A trial: one curve of a figure, and its names in files and commands."""

import dataclasses
from typing import Any

from alfk.experiment.records import INITS, SPECIAL, Record
from alfk.method.perturbation import DEFAULT_COPIES


def number_name(value: float) -> str:
    """A number in names and commands: as short as it can be without being another number's name."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def distortion_name(ir: float, nr: float) -> str:
    """The name of a distortion of the pool in file names."""
    return f"ir_{number_name(ir)}_nr_{number_name(nr)}"


@dataclasses.dataclass(frozen=True)
class Trial:
    """One curve of a figure: a method on one distortion of the pool from one kind of initial model.

    Attributes:
        init: a key of INITS.
        select: the rule for the epoch that an iteration keeps: best on "test" (the paper's protocol), best on "val", or
            "last".
        copies: how images are perturbed (a key of perturbation.STRATEGIES), for methods whose pseudo-labels come from
            perturbed copies; None for all others.
        first_batch: "random" if the first query is drawn at random by a method that would choose it; else None.
        validation_size: the size of the validation set, a stratified part of the data set's; None for the whole.
        adds_validation: whether the validation images are trained on too.
    """

    ir: float
    method: str
    length: int
    ensemble: int = 1
    nr: float = 0.0
    init: str = "rotation"
    select: str = "test"
    copies: str | None = None
    first_batch: str | None = None
    validation_size: int | None = None
    adds_validation: bool = False

    @property
    def plain(self) -> "Trial":
        """The same without a random first batch, another validation set, or training on it."""
        return dataclasses.replace(self, first_batch=None, validation_size=None, adds_validation=False)

    @property
    def unsupervised(self) -> bool:
        """Whether it starts from a rotation model."""
        return self.init != "random"

    @property
    def distortion(self) -> str:
        return distortion_name(self.ir, self.nr)

    def stem(self, b: int, size: int) -> str:
        """The common part of all file names of AL iteration b with `size` labelled images."""
        parts = f"{INITS[self.init]}batch_{b}_size_{size}_{self.distortion}_sub_{self.method}_L_{self.length}"
        members = f"_E_{self.ensemble}" if self.ensemble > 1 else ""
        copies = f"_copies_{self.other_copies}" if self.other_copies else ""
        first = f"_first_{self.first_batch}" if self.first_batch else ""
        size = f"_V_{self.validation_size}" if self.validation_size else ""
        added = "_and_validation" if self.adds_validation else ""
        return f"{parts}{members}{copies}{first}{size}{added}{selection_suffix(self.select)}"

    @property
    def name(self) -> str:
        """The trial's name, the same for all its iterations."""
        return self.stem(0, 0).replace("batch_0_size_0_", "")

    def label(self) -> str:
        """A short name with distortion and initial model, e.g. "Rzg_pz L80 ir=100 rotation"."""
        return f"{self.short()} ir={number_name(self.ir)} {self.init}"

    @property
    def other_copies(self) -> str | None:
        """The kind of perturbed copies, if there are any and they are not the default's."""
        return None if self.copies == DEFAULT_COPIES else self.copies

    def short(self) -> str:
        """The method with the attributes that vary within a figure, e.g. "Rzg_pz L80", "varR E4"."""
        length, members = self.length, self.ensemble
        name = self.method + (f" L{length}" if length else "") + (f" E{members}" if members > 1 else "")
        name += f" copies by {self.other_copies}" if self.other_copies else ""
        name += " first random" if self.first_batch else ""
        name += f" V{self.validation_size}" if self.validation_size else ""
        return name + (" + validation" if self.adds_validation else "")

    def initial_command(self) -> str:
        """The command that makes its initial models."""
        parts = ["run.py --initial", f"-ir {number_name(self.ir)}"]
        parts += [f"-nr {number_name(self.nr)}"] if self.nr else []
        parts += [f"-ens {self.ensemble} --methods {self.method}"] if self.ensemble > 1 else []
        parts += [f"--select {self.select}"] if self.select != "test" else []
        return " ".join(parts)

    def facts(self) -> dict[str, Any]:
        """The trial as entries of records, headers and checkpoints."""
        about = {"method": self.method, "L": self.length, "ir": self.ir, "nr": self.nr, "init": self.init}
        about |= {"ensemble": self.ensemble, "select": self.select}
        return about | {key: getattr(self, key) for key in SPECIAL if getattr(self, key)}

    def describes(self, record: Record) -> bool:
        """Whether a results record belongs to this trial."""
        return Trial.of(record) == self

    @classmethod
    def of(cls, record: Record) -> "Trial":
        """The trial that a results record belongs to. Raises KeyError if an entry is missing."""
        INITS[record["init"]]
        method, length, ensemble = record["method"], record["L"], record["ensemble"]
        start = record["ir"], method, length, ensemble, record["nr"], record["init"]
        return cls(*start, record["select"], **{key: record[key] for key in SPECIAL if record.get(key)})


def selection_suffix(select: str) -> str:
    """The suffix of file names for a rule of --select; empty for the paper's protocol."""
    return "" if select == "test" else f"_select_{select}"
