"""The figures besides the paper's: methods of other papers, and results of the flags for first batch and validation."""

from collections.abc import Mapping

from alfk.experiment.records import VALIDATION_ALONE, Record
from alfk.experiment.trial import Trial
from alfk.method.acquisition import METHODS, get_method
from alfk.rivals import RIVALS

RIVAL_KEYS = {rival.key: rival for rival in RIVALS}
COMPARED = ("random", "varR")  # beside the rivals, and Rzg_pz


def families(
    trials: Mapping[Trial, list[Record]], ordinary: Mapping[Trial, list[Record]]
) -> dict[str, tuple[str, dict[Trial, list[Record]]]]:
    """The figures besides the paper's that trials of one distortion make: suffix of the name -> title and trials.

    Args:
        ordinary: those without a random first batch, another validation set, or training on it.
    """
    ours = [t for t in ordinary if t.method == "Rzg_pz"]
    ours = [max(ours, key=lambda t: t.length)] if ours else []
    compared = {t: ordinary[t] for t in (*(t for t in ordinary if t.method in COMPARED and t.ensemble == 1), *ours)}
    groups: dict[str, list[Trial]] = {"rivals": [], "rivals_informed": [], "first_random": [], "and_validation": []}
    for trial in ordinary:
        if trial.method in RIVAL_KEYS:
            informed = RIVAL_KEYS[trial.method].is_informed
            groups["rivals_informed" if informed else "rivals"].append(trial)
    for trial in trials:
        if trial.adds_validation and not trial.first_batch:
            groups["and_validation"].append(trial)
        elif trial.first_batch and not trial.validation_size:
            groups["first_random"].append(trial)
    first = (t for t in ordinary if t.method in METHODS and t.ensemble == 1 and not get_method(t.method).acts_first)
    beside = {
        **dict.fromkeys(("rivals", "rivals_informed"), compared),
        "first_random": {t: ordinary[t] for t in first},  # their first batch is random in any case
        "and_validation": {t: r for t, r in compared.items() if t.method != "varR"}
        | {t: r for t, r in trials.items() if t.method == VALIDATION_ALONE},
    }
    members = {}
    for name, group in groups.items():
        if group:  # and the others in the same runs
            runs = {record["run"] for t in group for record in trials[t]}
            same_runs = {t: [r for r in records if r["run"] in runs] for t, records in beside[name].items()}
            members[name] = {t: trials[t] for t in group} | {t: records for t, records in same_runs.items() if records}
    return {name: (FAMILY_TITLES[name], group) for name, group in members.items()}


FAMILY_TITLES = {
    "rivals": "rivals that know the pool alone",
    "rivals_informed": "rivals that know more",
    "first_random": "the first batch random for all",
    "and_validation": "trained on the validation images too",
}
