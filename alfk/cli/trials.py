"""The trials that a script's flags name, and the flags' spellings of methods."""

import argparse
from collections.abc import Sequence

from alfk.experiment.config import Experiment
from alfk.experiment.records import BASELINE, VALIDATION_ALONE
from alfk.experiment.trial import Trial
from alfk.method.acquisition import METHODS, get_method
from alfk.networks.weights import linear_layers
from alfk.rivals import RIVALS
from alfk.support.errors import UserError

Cfg = Sequence[tuple[float, str, int, int]]  # rows of (ir, method, L, ensemble size)

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
FAMILIES = {
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
    if _lacks_rare_classes(experiment, ir, method):
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


def _lacks_rare_classes(experiment: Experiment, ir: float, method: str) -> bool:
    """Whether a method needs rare classes where there are none; of a user's own images this is not known yet."""
    return "rare_classes" in get_method(method).inputs and ir == 1 and not experiment.own_images


def validation_of(options: argparse.Namespace, needed: bool) -> tuple[int | None, bool]:
    """The size of the validation set, None where it makes no difference, and whether it is trained on.

    Args:
        needed: whether the method uses the validation set.
    Raises:
        UserError: it is trained on and chooses the epoch too.
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
    classes = experiment.classes or 2  # unknown before a folder is read; there are as many layers for any number
    if len(linear_layers(experiment.network(classes))) == 1:
        raise UserError(f"--conv-only changes nothing on {experiment.name}: the last layer is the only linear one")
    return "rotation_conv"


def trials_of(cfg: Cfg, experiment: Experiment, options: argparse.Namespace) -> list[Trial]:
    """The trials of a configuration, filtered by -ir, --methods, -dl and -ens, and those that these flags add to it.

    With -ens the uncertainty methods get the ensemble sizes listed; other methods are kept if 1 is among them.

    Raises:
        UserError: an unknown method or descriptor length, or no trial.
    """
    named = {name: method_key(name, None) for name in options.methods or () if name != "rivals"}
    fitting = [rival.key for rival in RIVALS if not rival.max_classes or (experiment.classes or 0) <= rival.max_classes]
    methods = [key for name in options.methods or () for key in ([named[name]] if name in named else fitting)]
    lengths, sizes = options.descr_length or (), options.ensemble or ()
    for length in lengths:
        experiment.taps(length)  # raises UserError for an unknown length
    trials = []
    configured_irs = [experiment.default_ir] if experiment.own_images else dict.fromkeys(row[0] for row in cfg)
    for ir in options.ir or configured_irs:
        rows = [row[1:] for row in cfg if row[0] == ir] or list(dict.fromkeys(row[1:] for row in cfg))
        if experiment.own_images and not lengths:  # each method once
            rows = list(dict.fromkeys((row[0], row[1] and experiment.default_length, row[2]) for row in rows))
        if lengths:
            rows = [row for row in rows if row[1] in lengths or (row[1] == 0 and methods)]
        if sizes:  # only uncertainty methods have ensembles; trial_of refuses another method of --methods with one
            with_ensemble = {row[0] for row in rows if row[0] in methods or get_method(row[0]).needs_uncertainty}
            rows = [(*row[:2], size) for row in rows for size in sizes if size == 1 or row[0] in with_ensemble]
        if methods:
            rows = [row for row in rows if row[0] in methods]
        for method in methods:
            configured = {row[1:] for row in rows if row[0] == method}
            if configured and not lengths and not sizes:
                continue
            for length in lengths or (experiment.default_length,) if get_method(method).needs_descriptors else (0,):
                configured_sizes = {size for row_length, size in configured if row_length == length} or {1}
                added = [(length, size) for size in sizes or configured_sizes]
                rows += [(method, *row) for row in added if row not in configured]
        if "rivals" in (options.methods or ()):
            named_ones = named.values()
            rows = [row for row in rows if row[0] in named_ones or not _lacks_rare_classes(experiment, ir, row[0])]
        trials += [trial_of(experiment, ir, *row, options) for row in rows]
    if not trials:
        raise UserError("the configuration has no row with that -dl and -ens: name a method with --methods too")
    return list(dict.fromkeys(trials))


def baselines_of(trials: Sequence[Trial], options: argparse.Namespace) -> list[Trial]:
    """The trials of the line "all train", or of training on the validation set alone, one for each figure that the
    trials belong to. Raises UserError.
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
