"""Names, order and looks of trials in figures and tables."""

import re

from alfk.experiment.trial import Trial
from alfk.method.acquisition import METHODS
from alfk.method.uncertainty import MEASURES

# One colour and marker per method, in the order of tables. Okabe and Ito's palette is safe for colour-blind readers;
# markers and dashes distinguish methods in greyscale.
STYLES = {
    "random": ("#000000", "o"),
    "vaal": ("#8C6BB1", "*"),
    "varR": ("#0072B2", "X"),
    "entropy": ("#08519C", "<"),
    "BALD": ("#4292C6", ">"),
    "std": ("#6BAED6", "d"),
    "Rz": ("#56B4E9", "s"),
    "Rzg_trace": ("#B8A800", "p"),
    "Rzg_mi": ("#999999", "h"),
    "Rzg_mi_diag": ("#666666", "H"),
    "Rzg_pred": ("#E69F00", "v"),
    "Rzg_pz": ("#D55E00", "D"),
    "Rzg_pzg": ("#CC79A7", "^"),
    "Rzg_true": ("#009E73", "P"),
    "margin": ("#7B3294", "8"),
    "leastconf": ("#B58ACB", (3, 1, 0)),
    "entropy_det": ("#E7298A", (8, 1, 0)),
    "badge": ("#1B7837", (4, 1, 0)),
    "coreset": ("#8C510A", (4, 1, 45)),
    "typiclust": ("#80B1D3", (6, 1, 0)),
    "galaxy": ("#4D4D9F", (5, 1, 180)),
    "galaxy_v": ("#A6A6DD", (3, 1, 180)),
    "direct": ("#2D004B", (6, 1, 30)),
    "epig": ("#66A61E", "+"),
    "glister": ("#A50F15", (7, 1, 0)),
    "flqmi": ("#1B9E77", "x"),
    "flqmi_z": ("#C51B7D", "1"),
    "flqmi_rare": ("#B15928", "2"),
    "Rz_fl": ("#08306B", "3"),
    "Rzg_fl": ("#00441B", (5, 1, 0)),
    "Rzg_flw": ("#7F2704", "4"),
    "Rz_rc": ("#9ECAE1", (4, 0, 45)),
    "Rzg_rc": ("#FDAE6B", (4, 0, 0)),
}


def place(trial: Trial) -> tuple:
    """The sorting key of trials in figures and tables."""
    order = list(STYLES)
    known = order.index(trial.method) if trial.method in order else len(order)
    special = trial.other_copies is not None, trial.validation_size or 0, trial.adds_validation
    return known, trial.length, trial.ensemble, trial.init != "rotation", *special


def series(trial: Trial) -> str:
    """A trial's name in the reference tables, e.g. `Rzg_pz_L80`, `varR_E4`, `random`, without init and --select."""
    if trial.length:
        return f"{trial.method}_L{trial.length}"
    sampled = trial.method in MEASURES or trial.ensemble > 1
    return f"{trial.method}_E{trial.ensemble}" if sampled else trial.method


def parse_series(name: str) -> tuple[str, int, int]:
    """Method, L and E: "Rzg_pz_L80" -> ("Rzg_pz", 80, 1), "varR_E4" -> ("varR", 0, 4), "random" -> ("random", 0, 1)."""
    found = re.fullmatch(r"(.+)_([LE])([1-9][0-9]{0,8})", name)
    if not found:
        return name, 0, 1
    method, letter, number = found.groups()
    return (method, int(number), 1) if letter == "L" else (method, 0, int(number))


def name_of(trial: Trial) -> str:
    """A trial in a line of text or a table, e.g. "Rzg_pz L80, random init"; the figure's title states --select."""
    return f"{trial.short()}{init_suffix(trial.init)}"


def notation(trial: Trial) -> str:
    """A trial as the paper's figures label it, in TeX."""
    method = METHODS.get(trial.method)
    parts = [method.notation if method else {"vaal": "VAAL"}.get(trial.method, trial.method)]
    parts += [f"$L_{{{trial.length}}}$"] if trial.length else []
    parts += [f"$E={trial.ensemble}$"] if trial.method in MEASURES else []
    parts += [r"$\theta_{rnd}$"] if trial.init == "random" else []
    parts += [f"copies by {trial.other_copies}"] if trial.other_copies else []
    parts += ["first batch random"] if trial.first_batch else []
    parts += [f"$V={trial.validation_size:,}$".replace(",", "{,}")] if trial.validation_size else []
    parts += ["validation set added"] if trial.adds_validation else []
    return ", ".join(parts)


def init_suffix(init: str) -> str:
    """The initial model as the suffix of a title or name; empty for the rotation model."""
    return {"rotation": "", "rotation_conv": ", only convolutions kept", "random": ", random init"}[init]


def select_suffix(select: str) -> str:
    """The rule of --select as the suffix of a title or name; empty for the paper's protocol."""
    return "" if select == "test" else f", --select {select}"


def count_of_runs(runs: int) -> str:
    """ "1 run", "3 runs"."""
    return f"{runs} run{'' if runs == 1 else 's'}"
