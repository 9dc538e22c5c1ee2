"""Damaged and exchanged files: kinds of file that a run reads x damages, of which a sample is tried.

The deciding files of an iteration meet every damage, the other kinds every fourth. Each case ends either with the
results of the undamaged run, to the bit, or with one line that names the file, exit status 2, and a fix that works:
after it the same command ends as if nothing had happened.
"""

import contextlib
import ctypes
import dataclasses
import functools
import io
import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import run_plot
from alfk.cli import opening, scripts
from alfk.experiment import loop
from alfk.experiment.config import Experiment
from alfk.experiment.folder import RunFolder
from alfk.experiment.workspace import Workspace
from alfk.plotting import plots
from alfk.support.checkpoints import load_checkpoint, save_checkpoint
from alfk.support.errors import UserError
from alfk.support.files import read_json, write_json
from mnist.config import DIGITS
from tests.helpers import Done, outcome, records
from vaal import main as vaal
from vaal.config import RECIPES

SECONDS = 60  # after which a command hangs


@functools.cache
def digits():
    train, test = DIGITS.load(None)
    return train.subset(torch.arange(400)), test.subset(torch.arange(80))


def load(folder, strict=True):
    return digits()


TINY = dataclasses.replace(
    DIGITS,
    name="TINY",
    validation_per_class=(8,) * 10,
    iterations=2,
    query_size=12,
    runs=1,
    samples=2,
    retraining=dataclasses.replace(DIGITS.retraining, epochs=1),
    pretraining=dataclasses.replace(DIGITS.pretraining, epochs=1),
    load=load,
)
SHORT = dataclasses.replace(RECIPES["DIGITS"], divisor=32, batch_size=4, train_iterations=6)
ROWS = [(20, "Rzg_pz", 20, 1), (20, "varR", 0, 1)]


# Commands, in this process


class Hangs(BaseException):
    pass


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    """Raises Hangs if the block does not end in time."""

    def alarm(*_):
        raise Hangs

    before = signal.signal(signal.SIGALRM, alarm)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(script: Callable[[], int], *flags: object) -> Done:
    """What a script prints and its exit status; Hangs if it does not end in time."""
    out, err, argv, terminate = io.StringIO(), io.StringIO(), sys.argv, signal.getsignal(signal.SIGTERM)
    sys.argv = ["run.py", *map(str, flags)]
    try:
        with in_time(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = script()
    except SystemExit as end:
        code = end.code
    finally:
        signal.signal(signal.SIGTERM, terminate)
        sys.argv = argv
        opening._load.cache_clear()
    return Done(out.getvalue(), err.getvalue(), code or 0)


def al(folder: Path, *flags: object, experiment: Experiment = TINY) -> Done:
    """run.py of the data set TINY, whose methods are those of ROWS."""
    same = ["--save-folder", folder, "--device", "cpu", "-nr", 0.1]
    return run(lambda: scripts.run({"TINY": experiment}, {"TINY": ROWS}, "TINY"), *same, *flags)


def gen(folder: Path, *flags: object) -> Done:
    """gen_descr.py of TINY."""
    same = ["--save-folder", folder, "--device", "cpu", "-nr", 0.1, "-b", 1]
    return run(lambda: scripts.gen_descr({"TINY": TINY}, "TINY"), *same, *flags)


def vaal_run(folder: Path, *flags: object) -> Done:
    """vaal/main.py of TINY."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "TINY", SHORT)
        same = ["--save-folder", folder, "--device", "cpu"]
        return run(lambda: vaal.main({"TINY": TINY}, "TINY"), *same, *flags)


# Damages


@dataclasses.dataclass
class Case:
    """A file to damage; `other_run` and `other_method`: the files to put in its place."""

    path: Path
    other_run: Path
    other_method: Path


def rewrite(change: Callable[[bytes], bytes]) -> Callable[[Case], None]:
    return lambda case: (case.path.write_bytes(change(case.path.read_bytes())), None)[1]


def flip(content: bytes, place: float) -> bytes:
    """One bit changed at a share of the length."""
    changed = bytearray(content)
    changed[int(place * len(content))] ^= 0x40
    return bytes(changed)


def spoil(case: Case, what: str) -> None:
    """NaN, another shape or another type in a file that is otherwise as it should be."""
    path = case.path
    if path.suffix == ".npy":
        array = np.load(path)
        if what == "shape":
            array = array[:-1]
        elif what == "type":
            array = np.zeros(array.shape, "<f4" if array.dtype != np.dtype("<f4") else "<i8")
        else:
            content = array.tobytes()[:-8] + b"\xff" * 8  # in floats NaN, in integers an index that is out of range
            array = np.frombuffer(content, array.dtype).reshape(array.shape)
        np.save(path, array)
    elif path.suffix == ".pt":
        state, about = load_checkpoint(path, {})
        values = first_tensors(state)
        name = next(iter(values))
        new = {
            "nan": lambda w: w.fill_(float("nan")),
            "shape": lambda w: w[..., :1],
            "type": lambda w: w.double().int(),
        }
        values[name] = new[what](values[name].clone())
        with contextlib.suppress(Exception):  # it may refuse to write such a file
            save_checkpoint(path, state, about)
            return
        torch.save({"state": state, "about": about}, path)
    elif path.name == "results.jsonl":
        lines = records(path.parent)
        lines[0]["accuracy"] = {"nan": float("nan"), "shape": [1.0], "type": "high"}[what]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        content = json.loads(path.read_text())
        key = "settings" if "settings" in content else "kind"
        path.write_text(json.dumps({"nan": {**content, key: float("nan")}, "shape": [content], "type": {key: 3}}[what]))


def first_tensors(state: dict) -> dict:
    """The first dictionary in a checkpoint whose values are tensors."""
    if all(isinstance(value, torch.Tensor) for value in state.values()):
        return state
    nested = [value[0] if isinstance(value, list) else value for value in state.values()]
    return first_tensors(next(value for value in nested if isinstance(value, dict)))


def replace_by(make: Callable[[Path], object]) -> Callable[[Case], None]:
    def damage(case: Case) -> None:
        case.path.unlink()
        make(case.path)

    return damage


DAMAGES: dict[str, Callable[[Case], None]] = {
    "empty": rewrite(lambda content: b""),
    "half": rewrite(lambda content: content[: len(content) // 2]),
    "last byte cut": rewrite(lambda content: content[:-1]),
    "a bit in the data": rewrite(lambda content: flip(content, 0.7)),
    "a bit in the header": rewrite(lambda content: flip(content, 0.02)),
    "another run's": lambda case: shutil.copy(case.other_run, case.path),
    "another method's": lambda case: shutil.copy(case.other_method, case.path),
    "nan": lambda case: spoil(case, "nan"),
    "wrong shape": lambda case: spoil(case, "shape"),
    "wrong type": lambda case: spoil(case, "type"),
    "directory": replace_by(Path.mkdir),
    "dangling link": replace_by(lambda path: path.symlink_to("nowhere")),
    "link to itself": replace_by(lambda path: path.symlink_to(path.name)),
    "fifo": replace_by(os.mkfifo),
    "unreadable": lambda case: case.path.chmod(0),
}


@contextlib.contextmanager
def without_roots_rights() -> Iterator[None]:
    """Root reads and writes what it may not, by two capabilities; inside the block this thread is without them."""
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, data) == 0
    effective = data[0]
    data[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert libc.capset(header, data) == 0
    try:
        yield
    finally:
        data[0] = effective
        assert libc.capset(header, data) == 0


# A case


@dataclasses.dataclass(frozen=True)
class Scene:
    """A run that has stopped half-way, and the command that ends it.

    Attributes:
        kinds: kind of file -> pattern below run0, and the pattern of another method's file of the same type.
    """

    root: Path
    command: Callable[[Path], Done]
    fix: dict[str, Callable[[Path], Done]]
    kinds: dict[str, tuple[str, str]]
    wanted: dict[str, object]


def delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def end_of(scene: Scene, kind: str, damage: str, copy: Path) -> str:
    """How the command ends on a copy of the scene with one damaged file.

    Returns:
        "equal" or "fixed", which are right; "silent", "dead end", "traceback", "not one line", "hang", which are not.
    """
    shutil.copytree(scene.root, copy, symlinks=True)
    pattern, other = scene.kinds[kind]
    (path,) = (copy / "run0").glob(pattern)
    case = Case(path, scene.root / "run1" / path.relative_to(copy / "run0"), next((scene.root / "run0").glob(other)))
    DAMAGES[damage](case)
    try:
        with without_roots_rights() if damage == "unreadable" else contextlib.nullcontext():
            done = scene.command(copy)
        path.is_fifo() and path.unlink()  # which was not read
        if done.returncode == 0:
            return "equal" if ends(copy) == scene.wanted else "silent"
        line = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("warning: "))
        if done.returncode != 2 or len(line.splitlines()) != 1 or path.with_suffix("").name not in line:
            return f"not one line: {line}"
        path.chmod(0o600) if damage == "unreadable" else delete(path)
        for words, make in scene.fix.items():
            if words in line:
                make(copy)
        done = scene.command(copy)
        if done.returncode == 0:
            return "fixed" if ends(copy) == scene.wanted else f"silent after: {line}"
        return f"dead end: {line} -> {done.stderr}"
    except Hangs:
        return "hang"
    except Exception as problem:
        return f"traceback: {type(problem).__name__}: {problem}"


def ends(folder: Path) -> dict[str, object]:
    """What the first run of a folder must end with."""
    found = outcome(folder / "run0")
    for path in folder.glob("run0/query_*.csv"):
        found[path.name] = path.read_text()
    return found


STEM = "unsup_batch_{}_size_{}_ir_20_nr_0.1_sub_{}"
RZG, VARR, LATER = (functools.partial(STEM.format, b, size) for b, size in ((0, 12), (1, 12), (1, 24)))
ARRAYS = {
    "validation": ("data/validation", "data/pool_*"),
    "pool": ("data/pool_ir_20_nr_0.1", "data/validation"),
    "noisy labels": ("data/labels_ir_20_nr_0.1", "data/pool_*"),
    "pool descriptors": (f"descr/pool_{VARR('Rzg_pz_L_20')}", "descr/validation_*"),
    "validation descriptors": (f"descr/validation_{VARR('Rzg_pz_L_20')}", "descr/pool_*"),
}
KINDS = {
    **{name: (f"{a}.npy", f"{b}.npy") for name, (a, b) in ARRAYS.items()},
    **{f"{name}'s header": (f"{a}.json", f"{b}.json") for name, (a, b) in ARRAYS.items()},
    "random model": ("checkpoint/init_batch_0_*.pt", "checkpoint/init_unsup*.pt"),
    "rotation model": ("checkpoint/init_unsup_*.pt", "checkpoint/best*"),
    "checkpoint": (f"checkpoint/best_{RZG('Rzg_pz_L_20')}.pt", f"checkpoint/best_{RZG('varR_L_0')}.pt"),
    "waiting query": (f"checkpoint/query_{LATER('varR_L_0')}.pt", f"checkpoint/best_{RZG('varR_L_0')}.pt"),
    "manifest": ("manifest.json", "data/validation.json"),
    "results": ("results.jsonl", "manifest.json"),
}


MODELS = {"random model": 0, "rotation model": 1}  # kind -> --unsupervised


@functools.cache
def from_initial_model(root: Path, unsupervised: int) -> tuple[Callable[[Path], Done], dict[str, object]]:
    """A command that reads an initial model, which the second iteration does not, and what it must end with."""

    def command(folder: Path) -> Done:
        return al(folder, "--methods", "random", "--iterations", 1, "--unsupervised", unsupervised)

    whole = root.with_name(f"whole{unsupervised}")
    shutil.copytree(root, whole)
    assert command(whole).returncode == 0
    return command, ends(whole)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Two runs: one iteration of each method is finished, the second of Rzg_pz is described, that of varR waits."""
    root = tmp_path_factory.mktemp("scene") / "runs"
    two = ["--run-stop", 2]
    for flags in (["--initial", *two], ["--iterations", 1, *two]):
        assert al(root, *flags).returncode == 0
    for number in (0, 1):
        assert gen(root, "-r", number, "-sub", "Rzg_pz", "-dl", 20).returncode == 0
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Hangs):
            patch.setattr(loop, "STAGES", loop.STAGES._replace(train=stop))
            patch.setattr(loop.active_learning, "__defaults__", (loop.STAGES, False))
            al(root, "--methods", "varR", "--run-start", number, "--run-stop", number + 1)
    whole = root.with_name("whole")
    shutil.copytree(root, whole)
    assert al(whole).returncode == 0

    def initial(folder: Path) -> Done:
        return al(folder, "--initial")

    return Scene(root, al, {"with --initial": initial}, KINDS, ends(whole))


IMPOSSIBLE = [("waiting query", damage) for damage in ("nan", "wrong shape", "wrong type")]  # it has no weights


def sample(kinds: Collection[str], always: Collection[str] = ()) -> list[tuple[str, str]]:
    """(kind, damage): every fourth damage of each kind, beginning with another one each time; of some kinds all."""
    cases = [case for case in itertools.product(kinds, DAMAGES) if case not in IMPOSSIBLE]
    return [case for i, case in enumerate(cases) if i % 4 == 0 or case[0] in always]


@pytest.mark.parametrize(("kind", "damage"), sample(KINDS, always=("checkpoint", "waiting query")))
def test_a_damaged_file(scene, kind, damage, tmp_path):
    if kind in MODELS:
        command, wanted = from_initial_model(scene.root, MODELS[kind])
        scene = dataclasses.replace(scene, command=command, wanted=wanted)
    assert end_of(scene, kind, damage, tmp_path / "copy") in ("equal", "fixed")


VAAL_STEM = "unsup_batch_{}_size_{}_ir_20_nr_0_sub_vaal_L_0"
VAAL_KINDS = {
    "part": (f"checkpoint/part_{VAAL_STEM.format(1, 24)}.pt", "checkpoint/best_*.pt"),
    "vaal's checkpoint": (f"checkpoint/best_{VAAL_STEM.format(0, 12)}.pt", "checkpoint/part_*.pt"),
}


@pytest.fixture(scope="module")
def vaal_scene(tmp_path_factory):
    """Two runs of VAAL that were stopped in the second iteration, after its second check."""
    root = tmp_path_factory.mktemp("vaal") / "runs"
    assert al(root, "--initial", "-nr", 0, "--run-stop", 2).returncode == 0
    for number in (0, 1):
        assert vaal_run(root, "-r", number, "--iterations", 1).returncode == 0
    whole = root.with_name("whole")
    shutil.copytree(root, whole)
    assert vaal_run(whole).returncode == 0
    for number in (0, 1):
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Hangs):
            patch.setattr(vaal.Vaal, "score", stop)
            vaal_run(root, "-r", number)
    return Scene(root, vaal_run, {}, VAAL_KINDS, ends(whole))


def stop(*_: object) -> None:
    raise Hangs


@pytest.mark.parametrize(("kind", "damage"), sample(VAAL_KINDS))
def test_a_damaged_file_of_vaal(vaal_scene, kind, damage, tmp_path):
    assert end_of(vaal_scene, kind, damage, tmp_path / "copy") in ("equal", "fixed")


# One run, one setting


@pytest.fixture
def copy(scene, tmp_path):
    """A copy of the scene's runs."""
    return Path(shutil.copytree(scene.root, tmp_path / "copy"))


def refused(done: Done, words: str) -> None:
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert words in done.stderr


def with_other_dropout(classes: int) -> torch.nn.Module:
    network = TINY.network(classes)
    network.drop4.p = 0.25
    return network


def drawn_larger(model: torch.nn.Module, generator: torch.Generator) -> None:
    TINY.initialise(model, generator)
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)


def other_images(folder, strict=True):
    train, test = digits()
    return train.subset(torch.arange(399)), test


class OtherDecay(type(TINY.retraining.schedule)):
    def __call__(self, epoch: int, done: float = 1.0) -> float:
        return 0.5


ALIKE = {with_other_dropout: TINY.network, OtherDecay: type(TINY.retraining.schedule), drawn_larger: TINY.initialise}
for other, same in ALIKE.items():
    other.__name__ = other.__qualname__ = same.__name__
CONSTANTS = {  # behind the same names
    "network.structure": {"network": with_other_dropout},
    "network.initial": {"initialise": drawn_larger},
    "retraining.rates": {"retraining": dataclasses.replace(TINY.retraining, schedule=OtherDecay(every=15))},
    "taps.20": {"descriptors": {**TINY.descriptors, 20: TINY.descriptors[10]}},
}


def test_other_images_that_nothing_names(copy):
    """An experiment of one's own may load images without a source, by which others would be known."""
    refused(al(copy, experiment=dataclasses.replace(TINY, load=other_images)), "run0 was made with other image files")


@pytest.mark.parametrize("key", CONSTANTS)
def test_what_constants_do_is_compared(copy, key):
    """Not only their names: another version of the code may do something else under the same ones."""
    other = dataclasses.replace(TINY, **CONSTANTS[key])
    refused(al(copy, experiment=other), f"run0 was made with {key} = ")
    (copy / "run0" / "manifest.json").unlink()
    assert f"run0 was made with {key} = " in al(copy, experiment=other).stderr


def rewrite_description(path: Path, **changes: object) -> None:
    """Other entries in the description of a checkpoint, whose checksum is right."""
    state, about = load_checkpoint(path, {})
    save_checkpoint(path, {name: value.clone() for name, value in state.items()}, about | changes)


def test_a_checkpoint_of_other_settings(scene, copy):
    """It is the one to be deleted, and does not change what the run was made with."""
    path = copy / "run0" / scene.kinds["checkpoint"][0].replace("*", "")
    settings = load_checkpoint(path, {})[1]["settings"]
    rewrite_description(path, settings=settings | {"retraining.epochs": 3})
    refused(al(copy, "-e", 3), "run0 was made with retraining.epochs = 1, this command says 3")
    refused(al(copy), f"{path.name} was made with retraining.epochs = 3, this command says 1: delete it")
    path.unlink()
    assert al(copy).returncode == 0
    assert ends(copy) == scene.wanted


def test_a_manifest_of_other_initial_models(scene, copy):
    """The initial models are right, and not to be deleted."""
    path = copy / "run0" / "manifest.json"
    manifest = read_json(path)
    manifest["settings"]["pretraining.epochs"] = 2
    write_json(path, manifest)
    refused(al(copy), f"{path} says pretraining.epochs = 2, but no model of the run was made so: delete it")
    path.unlink()
    assert al(copy).returncode == 0
    assert ends(copy) == scene.wanted


def test_a_renamed_run(scene, copy):
    """Its files are right, and not to be deleted."""
    shutil.rmtree(copy / "run1")
    (copy / "run0").rename(copy / "run1")
    refused(al(copy, "--run-start", 1, "--run-stop", 2), f"{copy / 'run1'} holds run 0: rename it to run0")
    (copy / "run1").rename(copy / "run0")
    assert al(copy).returncode == 0
    assert ends(copy) == scene.wanted


@pytest.mark.parametrize("number", [0, 1])
def test_a_setting_of_which_something_was_made_stays(copy, number):
    """A model among several, or a line whose checkpoint is lost."""
    first, second = sorted((copy / "run0" / "checkpoint").glob("best_*.pt"))
    settings = load_checkpoint(first, {})[1]["settings"]
    rewrite_description((first, second)[number], settings=settings | {"retraining.epochs": 3}, behaviour={})
    refused(al(copy, "-e", 3), "run0 was made with retraining.epochs = 1, this command says 3")
    for path in (first, second):
        path.unlink()
    refused(al(copy, "-e", 3), "run0 was made with retraining.epochs = 1, this command says 3")
    (copy / "run0" / "results.jsonl").unlink()
    done = al(copy, "-e", 3)
    assert "manifest.json had retraining.epochs = 1, " in done.stderr
    assert ", but no model of the run was made so: replaced" in done.stderr


def test_a_setting_that_is_at_work_stays(copy):
    """Nothing is made yet of the settings of a command that began a moment ago."""
    for path in (copy / "run0").glob("*/best_*.pt"):
        path.unlink()
    (copy / "run0" / "results.jsonl").unlink()
    with RunFolder(copy, 0).lock("ir_20_nr_0.1"):
        refused(al(copy, "-e", 3), "run0 was made with retraining.epochs = 1, this command says 3")
    work = Workspace(TINY, RunFolder(copy, 0), *digits(), 0, torch.device("cpu"))
    work.folder.record_session(work.settings() | {"retraining.epochs": 3}, {})  # by another command, in the meantime
    with pytest.raises(UserError, match=r"run0 was made with retraining.epochs = 3, this command says 1"):
        work.lock("x").__enter__()


@pytest.mark.parametrize(
    "changes", [{"b": 0}, {"method": "random"}, {"run": 1}, {"seed": 1}, {"made_with": "0" * 16}], ids=str
)
def test_a_waiting_query_of_something_else(scene, copy, changes):
    (path,) = (copy / "run0").glob(scene.kinds["waiting query"][0])
    rewrite_description(path, **changes)
    refused(al(copy, "--methods", "varR"), path.name)


def test_initial_models_made_again_otherwise(scene, copy):
    """What stands on the old ones is not gone on with: neither a trained iteration nor a query that waits."""
    first = [copy, "--methods", "Rzg_pz", "--iterations", 1]
    (path,) = (copy / "run0" / "checkpoint").glob("init_unsup_*.pt")
    shutil.copy(next((copy / "run1" / "checkpoint").glob("init_unsup_*.pt")), path)
    rewrite_description(path, run=0)
    (best,) = (copy / "run0").glob(scene.kinds["checkpoint"][0])
    refused(al(*first), f"{best.name} was trained from other initial models than there are now: delete it")
    best.unlink()
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Hangs):
        patch.setattr(loop, "STAGES", loop.STAGES._replace(train=stop))
        patch.setattr(loop.active_learning, "__defaults__", (loop.STAGES, False))
        al(*first)
    assert (copy / "run0").glob("checkpoint/query_*_Rzg_pz_L_20.pt")
    shutil.copy(next((scene.root / "run0" / "checkpoint").glob("init_unsup_*.pt")), path)
    assert al(copy).returncode == 0
    assert ends(copy) == scene.wanted


def test_a_folder_of_a_run_that_is_a_file(scene, copy):
    for name in ("data", "checkpoint"):
        path = copy / "run0" / name
        shutil.rmtree(path)
        path.touch()
        refused(al(copy, "--initial"), f"{path} is a file in the place of a folder: remove it")
        path.unlink()
    DAMAGES["link to itself"](Case(copy / "run0" / ".lock", None, None))
    refused(al(copy, "--initial"), f"cannot write to {copy / 'run0' / '.lock'}: ")


def test_the_epochs_of_pretraining_that_has_been_done(copy):
    refused(al(copy, "--unsup-epochs", 7), "run0 was made with pretraining.epochs = 1, this command says 7")


def test_missing_images_are_named_before_missing_models(tmp_path):
    def missing(folder, strict=True):
        raise UserError(f"no images in {folder}")

    refused(al(tmp_path, experiment=dataclasses.replace(TINY, load=missing)), "no images in ")


# Figures: what is wrong with a results line or a manifest is named and left out, and the run's own command fixes it


CURVES = "TINY_ir20_nr0.1_curves.csv"


def figures(datadir: Path, out: Path, *more: object) -> Done:
    """run_plot.py without the drawing itself."""
    flags = ["--datadir", datadir, "--dataset", "TINY", "--out", out, *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "plot_curves", lambda *_: out.mkdir(exist_ok=True))
        return run(run_plot.main, *flags)


def tables(out: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in out.iterdir()}


@pytest.fixture(scope="module")
def drawn(scene, tmp_path_factory):
    """The scene's runs, finished, the tables of their figures, and the points of those of either run alone."""
    folder = tmp_path_factory.mktemp("drawn")
    shutil.copytree(scene.root, folder / "TINY")
    assert al(folder / "TINY", "--run-stop", 2).returncode == 0
    found = []
    for runs in ([], ["--run-stop", 1], ["--run-start", 1]):
        assert figures(folder, folder / "out", *runs).returncode == 0
        found.append(tables(folder / "out"))
    points = {line for each in found for line in each[CURVES].splitlines()}
    return folder, found[0], points


@pytest.mark.parametrize(("kind", "damage"), sample(("results", "manifest"), always=("manifest",)))
def test_a_damaged_file_that_figures_are_drawn_from(drawn, kind, damage, tmp_path):
    folder, wanted, points = drawn
    shutil.copytree(folder / "TINY", tmp_path / "TINY")
    own, other = (tmp_path / "TINY" / run / KINDS[kind][0] for run in ("run0", "run1"))
    DAMAGES[damage](Case(own, other, tmp_path / "TINY" / "run0" / KINDS[kind][1]))
    with without_roots_rights() if damage == "unreadable" else contextlib.nullcontext():
        done = figures(tmp_path, tmp_path / "out")
    named = str(own) in done.stderr
    if done.returncode == 0:
        found = tables(tmp_path / "out")
        assert found == wanted or (named and str(own) in found["TINY_ir20_nr0.1.md"])
        assert set(found[CURVES].splitlines()) <= points
    else:
        assert (done.returncode, named, len(done.stderr.splitlines())) == (2, True, 1)
    own.chmod(0o600) if damage == "unreadable" else delete(own) if done.returncode else None
    assert al(tmp_path / "TINY", "--run-stop", 2).returncode == 0
    assert figures(tmp_path, tmp_path / "out").returncode == 0
    assert tables(tmp_path / "out") == wanted
