"""The trials that a script's flags name, and the flags' spellings of methods."""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

from alfk.experiment.config import Experiment
from alfk.experiment.records import BASELINE, VALIDATION_ALONE
from alfk.experiment.trial import Trial
from alfk.method.acquisition import METHODS, get_method
from alfk.networks.weights import linear_layers
from alfk.rivals import RIVALS
from alfk.support.errors import UserError

Cfg = Sequence[tuple[float, str, int, int]]  # rows of (ir, method, L, ensemble size)


class Row(NamedTuple):
    """A row of a configuration without its imbalance ratio."""

    method: str
    length: int  # L; 0 for a method without descriptors
    ensemble: int


# The release's spellings of -sub; with "-sub none" the method follows from -aug.
ALIASES = {
    "gradAbl": "Rzg_true",
    "grad": "Rzg_pred",
    "cor": "Rzg_trace",
    "amiFull": "Rzg_mi",
    "amiDiag": "Rzg_mi_diag",
    "gradFmap": "Rzg_pz",
    "gradGmap": "Rzg_pzg",
    "varMC": "varR",
    "entMC": "entropy",
    "baldMC": "BALD",
    "stdMC": "std",
}
FAMILIES = {  # -aug -> methods
    "random": {"random"},
    "topKandPcc": {"Rz"},
    "topKandPccFprGrad": {key for key in ALIASES.values() if key.startswith("Rzg_")},
    "topUncert": {"varR", "entropy", "BALD", "std"},
}


def method_key(sub: str | None, aug: str | None) -> str:
    """The key of the method given by -sub and -aug, in this project's or the release's spelling. Raises UserError."""
    if sub is None and aug is None:
        raise UserError(f"name a method with -sub: {', '.join(METHODS)}")
    if sub in (None, "none"):
        if aug in (None, "none", "random"):
            return "random"
        if aug == "topKandPcc":
            return "Rz"
        raise UserError(f"-aug {aug} needs a -sub")
    key = get_method(ALIASES.get(sub, sub)).key
    if aug not in (None, "none") and key not in FAMILIES.get(aug, ()):
        raise UserError(f"-aug {aug} does not go with -sub {sub}")
    return key


def trials_of(cfg: Cfg, experiment: Experiment, options: argparse.Namespace) -> list[Trial]:
    """The trials of run.py: the rows of a configuration, narrowed and extended by -ir, --methods, -dl and -ens.

    For each imbalance ratio (of -ir, else of the configuration):

    1. The rows with this ratio count, or the rows of all ratios if none has it.
    2. --methods keeps the rows of these methods; a method without a row gets one, with the default descriptor length.
    3. -dl keeps the rows with these lengths; a method of --methods gets a row for each of them. A method without
       descriptors stays if --methods names it.
    4. -ens trains uncertainty methods with these ensemble sizes. Other methods, which have one model, stay if 1 is
       among the sizes; else they are left out or, if --methods names them, refused.

    For a user's own images the configuration has one ratio, the default one, and each of its methods one row with the
    default length, or with -dl a row for each length. tests/cli/test_trials.py is a table of examples.

    Raises:
        UserError: an unknown method or descriptor length, a trial that cannot be, or no trial.
    """
    lengths, sizes = options.descr_length or (), options.ensemble or ()
    for length in lengths:
        experiment.taps(length)  # raises UserError for an unknown length
    trials = []
    for ir in options.ir or ratios_of(cfg, experiment):
        methods = named_methods(options.methods or (), ir, experiment)
        rows = rows_of(cfg, ir, lengths, experiment)
        if methods:
            rows = with_methods(rows, methods, lengths, experiment.default_length)
        if lengths:
            rows = [row for row in rows if row.length in lengths or (methods and not row.length)]
        if sizes:
            rows = with_ensembles(rows, sizes, methods)
        trials += [trial_of(experiment, ir, *row, options) for row in rows]
    if not trials:
        raise UserError("the configuration has no row with that -dl and -ens: name a method with --methods too")
    return list(dict.fromkeys(trials))


def ratios_of(cfg: Cfg, experiment: Experiment) -> list[float]:
    """The imbalance ratios without -ir: those of the configuration, but the default one for a user's own images."""
    return [experiment.default_ir] if experiment.own_images else list(dict.fromkeys(ir for ir, *_ in cfg))


def named_methods(names: Sequence[str], ir: float, experiment: Experiment) -> list[str]:
    """The keys that --methods names; "rivals" are all rivals that this number of classes and this ratio allow."""
    allowed = [
        rival.key
        for rival in RIVALS
        if (experiment.classes or 0) <= (rival.max_classes or float("inf"))
        and not lacks_rare_classes(experiment, ir, rival.key)
    ]
    return [key for name in names for key in (allowed if name == "rivals" else [method_key(name, None)])]


def rows_of(cfg: Cfg, ir: float, lengths: Sequence[int], experiment: Experiment) -> list[Row]:
    """The rows that apply to an imbalance ratio (step 1 of `trials_of`)."""
    rows = [Row(*row) for row_ir, *row in cfg if row_ir == ir] or [Row(*row) for _, *row in cfg]
    if experiment.own_images:
        own_lengths = lengths or (experiment.default_length,)
        rows = [row._replace(length=n) for row in rows for n in (own_lengths if row.length else (0,))]
    return list(dict.fromkeys(rows))


def with_methods(rows: Sequence[Row], methods: Sequence[str], lengths: Sequence[int], default_length: int) -> list[Row]:
    """The rows of these methods, and the rows that methods lack: all of `lengths`, else one (steps 2 and 3)."""
    kept = [row for row in rows if row.method in methods]
    for method in methods:
        present = {row.length for row in kept if row.method == method}
        if lengths or not present:
            wanted = (lengths or (default_length,)) if get_method(method).needs_descriptors else (0,)
            kept += [Row(method, length, 1) for length in wanted if length not in present]
    return kept


def with_ensembles(rows: Sequence[Row], sizes: Sequence[int], methods: Sequence[str]) -> list[Row]:
    """The rows with the sizes of -ens in place of their own (step 4); `trial_of` refuses an impossible one."""

    def sizes_for(method: str) -> Sequence[int]:
        if get_method(method).needs_uncertainty:
            return sizes
        return (1,) if 1 in sizes else sizes if method in methods else ()

    return [row._replace(ensemble=size) for row in rows for size in sizes_for(row.method)]


def trial_of(
    experiment: Experiment, ir: float, method: str, length: int, ensemble: int, options: argparse.Namespace
) -> Trial:
    """A trial with checked method, descriptor length and ensemble. Raises UserError."""
    definition = get_method(method)
    if not definition.needs_descriptors:
        length = 0
    else:
        experiment.taps(length)
    if ensemble > 1 and not definition.needs_uncertainty:
        raise UserError(f"{method} works with one model, not with an ensemble of {ensemble}")
    if definition.needs_uncertainty and experiment.samples % ensemble:
        raise UserError(f"{experiment.samples} samples cannot be shared by {ensemble} models: choose another -smp")
    definition.check_classes(experiment.classes or 0)
    if lacks_rare_classes(experiment, ir, method):
        raise UserError(f"{method} has to know which classes are rare, and at -ir 1 none is")
    size, added = validation_of(options, definition.needs_validation)
    return Trial(
        ir,
        method,
        length,
        ensemble,
        options.nr,
        init=init_of(experiment, options),
        select=options.select,
        copies=options.copies if definition.estimates_from_copies else None,
        first_batch=options.first_batch if definition.acts_first else None,
        validation_size=size,
        adds_validation=added,
    )


def lacks_rare_classes(experiment: Experiment, ir: float, method: str) -> bool:
    """Whether a method needs rare classes where there are none; for a user's own images this is not known yet."""
    return "rare_classes" in get_method(method).inputs and ir == 1 and not experiment.own_images


def validation_of(options: argparse.Namespace, needed: bool) -> tuple[int | None, bool]:
    """The size of the validation set (None where it makes no difference), and whether it is trained on.

    Args:
        needed: whether the method uses the validation set.
    Raises:
        UserError: it would be trained on and choose the epoch too.
    """
    if options.add_validation and options.select == "val":
        raise UserError("--add-validation trains on the images by which --select val chooses the epoch: name another")
    needed = needed or options.add_validation or options.select == "val"
    return options.validation_size if needed else None, options.add_validation


def init_of(experiment: Experiment, options: argparse.Namespace) -> str:
    """The initial model given by --unsupervised and --conv-only, a key of INITS. Raises UserError."""
    if not options.conv_only:
        return "rotation" if options.unsupervised else "random"
    if not options.unsupervised:
        raise UserError("--conv-only keeps a part of the rotation model: it does not go with --unsupervised 0")
    classes = experiment.classes or 2  # unknown before a folder is read; the number of layers does not depend on it
    if len(linear_layers(experiment.network(classes))) == 1:
        raise UserError(f"--conv-only changes nothing on {experiment.name}: the last layer is the only linear one")
    return "rotation_conv"


def baselines_of(trials: Sequence[Trial], options: argparse.Namespace) -> list[Trial]:
    """The trials of --baseline (the line "all train") or --baseline-validation, one for each figure of the trials.

    Raises:
        UserError: flags that do not go with --baseline-validation.
    """
    method = BASELINE if options.baseline == "pool" else VALIDATION_ALONE
    if method == VALIDATION_ALONE and (options.add_validation or options.select == "val"):
        raise UserError(
            "--baseline-validation is trained on the validation set alone, without --add-validation, and "
            "the epoch cannot be chosen by it: --select test or last"
        )
    size, added = validation_of(options, needed=method == VALIDATION_ALONE)
    return list(
        dict.fromkeys(
            Trial(t.ir, method, 0, nr=t.nr, init=t.init, select=t.select, validation_size=size, adds_validation=added)
            for t in trials
        )
    )
