"""The loop and its stages in one process: a death between any two files, and the protocol of an iteration."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from alfk.experiment import pretrain
from alfk.experiment import train as retraining
from alfk.experiment.choose import choose, label
from alfk.experiment.describe import describe
from alfk.experiment.folder import FORMAT
from alfk.experiment.journal import Journal
from alfk.experiment.loop import active_learning, baselines
from alfk.experiment.pretrain import make_initial_models
from alfk.experiment.round import Round, begin
from alfk.experiment.train import train
from alfk.experiment.training import Evaluator, rotate
from alfk.experiment.trial import Trial
from alfk.networks.modes import dropout_mode
from alfk.networks.weights import fingerprint, snapshot
from alfk.support.checkpoints import load_checkpoint, save_checkpoint
from alfk.support.errors import UserError
from alfk.support.files import read_json, write_json
from mnist.config import DIGITS
from mnist.custom_models.lenet import LeNet
from svhn.custom_models.resnet10 import ResNet10
from tests.helpers import Killed
from tests.helpers import workspace as workspace_of

TRIALS = [Trial(20, "Rzg_pz", 20)]


@pytest.fixture(scope="module")
def data():
    return DIGITS.load(None)


def workspace(data, root, **changes):
    short = dataclasses.replace(
        DIGITS,
        iterations=2,
        retraining=dataclasses.replace(DIGITS.retraining, epochs=1),
        pretraining=dataclasses.replace(DIGITS.pretraining, epochs=1),
        **changes,
    )
    return workspace_of(short, root, *data)


def make_initial(work, *trials):
    """The initial models that the trials start from."""
    for trial in trials:
        make_initial_models(work, trial.ir, trial.nr, trial.ensemble, trial.select)


def everything(data, root, trial=TRIALS[0], **changes):
    """All the work of a run; returns what must be reproduced."""
    work = workspace(data, root, samples=4, **changes)
    make_initial(work, trial)
    active_learning(work, [trial])
    lists = [Journal(work, trial).acquired(b).queried.tolist() for b in (0, 1)]
    assert not {path.name.partition("_")[0] for path in work.folder.path.glob("checkpoint/*")} - {"best", "init"}
    exported = [work.folder.export("index_list", trial, b, 15 * (b + 1), ".npy") for b in (0, 1)]
    assert [np.load(path).tolist() for path in exported] == lists
    scores = [(r["b"], r["accuracy"], r["accuracy_per_class"], r["epochs"]) for r in work.folder.results()]
    _, fingerprint = begin(Journal(work, trial), 2).starting_models()
    return lists, scores, fingerprint


@pytest.mark.slow
def test_death_between_any_two_files(data, tmp_path, monkeypatch):
    """Die just before and just after each renaming of a finished file; a second start must end the same way."""
    rename = Path.replace
    data = data[0].subset(torch.arange(250)), data[1].subset(torch.arange(50))  # it runs some seventy times
    few = {"validation_per_class": (8,) * 10}
    wanted = everything(data, tmp_path / "whole", **few)
    deaths = 0
    for when in itertools.count():
        for after in (False, True):
            calls = itertools.count()

            def dying(path, target, calls=calls, when=when, after=after):
                number = next(calls)
                if number == when and not after:
                    raise Killed
                rename(path, target)
                if number == when:
                    raise Killed
                return target

            root = tmp_path / f"{when}{after}"
            monkeypatch.setattr(Path, "replace", dying)
            try:
                everything(data, root, **few)
            except Killed:
                deaths += 1
            else:
                assert deaths >= 30
                return
            finally:
                monkeypatch.setattr(Path, "replace", rename)
            assert everything(data, root, **few) == wanted


def test_an_ensemble_with_dropout_is_reproduced(data, tmp_path):
    """Also when it is resumed between the two iterations, whatever the global generator was at before."""
    trial = Trial(20, "varR", 0, ensemble=2)
    wanted = everything(data, tmp_path / "whole", trial)
    torch.manual_seed(123)
    again = workspace(data, tmp_path / "parts", samples=4)
    make_initial(again, trial)
    again.experiment = dataclasses.replace(again.experiment, iterations=1)
    active_learning(again, [trial])
    assert everything(data, tmp_path / "parts", trial) == wanted
    models, _ = begin(Journal(again, trial), 1).starting_models()
    assert not torch.equal(models[0].fc1.weight, models[1].fc1.weight)
    record = again.folder.results()[0]  # after which `models` are
    evaluations = [Evaluator(again.test, 100)(model) for model in models]
    assert record["accuracy_members"] == [found.accuracy for found in evaluations]
    assert record["accuracy"] == pytest.approx(sum(record["accuracy_members"]) / 2)
    lone = everything(data, tmp_path / "lone", Trial(20, "varR", 0))
    assert lone[0] != wanted[0]
    assert lone[0][0] == wanted[0][0]  # the first query is the run's, drawn at random


@pytest.mark.parametrize("separate", [False, True])
def test_parts_of_the_validation_set(data, tmp_path, separate):
    """Stratified, each within the next larger one, the same again from the files and without them; the pool stays."""
    train, test = data
    more = {"separate_validation": test} if separate else {}
    skewed = torch.cat([(train.labels == c).nonzero().flatten()[: 20 + 15 * c] for c in range(10)])
    if separate:  # of unequal classes
        train, more = train, {"separate_validation": train.subset(skewed)}

    def made(root, number=0):
        return workspace_of(DIGITS, tmp_path / root, train, test, number, **more)

    work = made("a")
    pool = made("b").pool_indices(20, "ir_20_nr_0")
    whole, before = work.validation(), set()
    share = torch.bincount(whole.labels) / len(whole)
    for size in (7, 8, 50, 51, 200, len(whole)):
        part = work.validation(size)
        rows = torch.from_numpy(np.load(work.folder.data(f"validation_{size}")))
        assert len(part) == len(rows.unique()) == size
        assert torch.equal(part.images, whole.images[rows])
        assert torch.equal(part.labels, whole.labels[rows])
        assert ((torch.bincount(part.labels, minlength=10) - size * share).abs() <= 1).all()
        assert before <= set(rows.tolist())
        before = set(rows.tolist())
        assert torch.equal(work.validation(size).labels, part.labels)
        assert torch.equal(made("b").validation(size).images, part.images)
    assert not torch.equal(made("c", number=1).validation(50).images, work.validation(50).images)
    assert torch.equal(work.pool_indices(20, "ir_20_nr_0"), pool)
    with pytest.raises(UserError, match=f"--validation-size {len(whole) + 1} is more than the {len(whole)} validation"):
        work.validation(len(whole) + 1)


def test_a_part_of_a_validation_set_has_no_image_that_is_held_out_for_test(data, tmp_path):
    """A run's sizes are checked before its images are divided."""
    train, test = data
    experiment, trial = dataclasses.replace(DIGITS, holdout=0.4, validation_per_class=()), Trial(1, "flqmi", 0)
    work, again = (workspace_of(experiment, tmp_path, train, test, separate_validation=test) for _ in range(2))
    work.check_sizes([dataclasses.replace(trial, validation_size=100)], 1)
    work.hold_out(experiment.holdout)
    held, rest, part = (set(s.rows.tolist()) for s in (work.test, work.validation(), work.validation(100)))
    assert (len(part), len(held) + len(rest)) == (100, len(test))
    assert part < rest
    assert not held & rest
    with pytest.raises(UserError, match=f"is more than the {len(rest)} validation images"):
        again.check_sizes([dataclasses.replace(trial, validation_size=len(rest) + 1)], 1)


def test_what_cannot_be_done_with_a_validation_set(data, tmp_path):
    train, test = data
    own, separate = workspace(data, tmp_path), workspace(data, tmp_path)
    separate.separate_validation = test  # like ImageNet's, both for validation and for test
    trial = Trial(20, "random", 0)
    alone, added = (
        dataclasses.replace(trial, **each) for each in ({"method": "validation"}, {"adds_validation": True})
    )
    own.check_sizes([alone, added, dataclasses.replace(trial, validation_size=500)], 1)
    with pytest.raises(UserError, match="validation-size 501 is more than the 500 validation images"):
        own.check_sizes([dataclasses.replace(trial, validation_size=501)], 1)
    with pytest.raises(UserError, match="DIGITS's validation images are its test images: --baseline-validation would"):
        separate.check_sizes([alone], 0)
    with pytest.raises(UserError, match="those of DIGITS are a set of their own"):
        separate.check_sizes([added], 1)
    separate.separate_validation = train
    separate.check_sizes([alone], 0)


def test_validation_images_are_trained_on_where_that_is_wanted(data, tmp_path, monkeypatch):
    """With their true labels, after the labelled images and theirs, which may be noisy; or alone."""
    work, seen = workspace(data, tmp_path), []
    trial = Trial(20, "random", 0, nr=0.5, adds_validation=True, validation_size=30)
    make_initial(work, trial)
    fit = retraining.fit
    monkeypatch.setattr(
        retraining, "fit", lambda model, split, *rest, **more: (seen.append(split), fit(model, split, *rest, **more))
    )
    work.experiment = dataclasses.replace(work.experiment, iterations=1)
    active_learning(work, [trial])
    baselines(
        work,
        [dataclasses.replace(trial, method=method, adds_validation=False) for method in ("validation", "all_train")],
    )
    current = Round(work, trial, 0)
    labelled, validation = current.pool.subset(current.acquired().queried), work.validation(30)
    for split, wanted in zip(seen, ([labelled, validation], [validation], [current.pool]), strict=True):
        assert torch.equal(split.images, torch.cat([each.images for each in wanted]))
        assert torch.equal(split.labels, torch.cat([each.labels for each in wanted]))
    added, alone, everything = work.folder.results()
    assert [line["labelled"] for line in (added, alone, everything)] == [15, 30, len(current.pool)]
    assert alone["selected_histogram"] == torch.bincount(validation.labels, minlength=10).tolist() == [3] * 10
    assert added["selected_histogram"] == torch.bincount(labelled.labels, minlength=10).tolist()


def test_exports_are_written_again_and_never_read(data, tmp_path):
    wanted = everything(data, tmp_path)
    exports = [*tmp_path.glob("run0/index_list_*"), *tmp_path.glob("run0/query_*"), tmp_path / "run0" / "results.jsonl"]
    assert len(exports) == 5
    before = [path.read_bytes() for path in exports]
    for damage in (Path.unlink, lambda path: path.write_bytes(b"spoilt")):
        for path in exports:
            damage(path)
        assert everything(data, tmp_path) == wanted
        assert [path.read_bytes() for path in exports] == before


def test_a_run_of_a_version_with_more_entries_goes_on(data, tmp_path):
    wanted = everything(data, tmp_path)
    first, last = (Journal(workspace(data, tmp_path, samples=4), TRIALS[0]).checkpoint(b) for b in (0, 1))
    state, about = load_checkpoint(first, {})
    about["acquired"]["labels"] = None
    save_checkpoint(first, {name: value.clone() for name, value in state.items()}, about)
    last.unlink()
    assert everything(data, tmp_path) == wanted


def test_a_record_states_what_the_matches_are(data, tmp_path):
    everything(data, tmp_path)
    work = workspace(data, tmp_path, samples=4)
    for b, record in enumerate(work.folder.results()):
        chosen = Journal(work, TRIALS[0]).acquired(b).selection
        assert record["similarity"] == round(float(chosen.similarity.mean()), 4)
        assert record["matched"] == len(set(chosen.matches.tolist()))


def test_an_iteration_from_an_initial_model_of_other_settings_is_named(data, tmp_path):
    everything(data, tmp_path)
    work = workspace(data, tmp_path, samples=4)
    path = work.folder.initial(TRIALS[0].distortion, unsupervised=True)
    state, about = load_checkpoint(path, {})
    state = {name: value.clone() for name, value in state.items()}
    save_checkpoint(path, state, {**about, "settings": {**about["settings"], "pretraining.epochs": 7}})
    with pytest.raises(UserError, match=r"best_.* it was made with other settings"):
        active_learning(work, TRIALS)


def test_a_network_that_breaks_the_contract_is_refused(data, tmp_path):
    """That of a data set of one's own."""

    class FewTaps(LeNet):
        def forward(self, images):
            logits, taps = super().forward(images)
            return logits, taps[:1]

    work = workspace(data, tmp_path, network=FewTaps)
    make_initial(work, *TRIALS)
    with pytest.raises(UserError, match=r"there is no tap 1: the model returned 1"):
        active_learning(work, TRIALS)


def test_databases_of_another_model_are_refused_and_made_again(data, tmp_path):
    work = workspace(data, tmp_path)
    make_initial(work, *TRIALS)
    current = begin(Journal(work, TRIALS[0]), 0)
    describe(current)
    header = current.database("pool").with_suffix(".json")
    right = read_json(header)
    write_json(header, {**right, "model": "another"})
    with pytest.raises(UserError, match=r"pool_.* is not the file it should be: its model is another"):
        choose(current)
    describe(current)
    assert read_json(header)["model"] == right["model"]


def test_an_iteration_is_trained_from_the_one_before(data, tmp_path):
    """The first checkpoint is lost, and made again with other weights: the second one is refused."""
    everything(data, tmp_path)
    work = workspace(data, tmp_path, samples=4)
    path = Journal(work, TRIALS[0]).checkpoint(0)
    state, about = load_checkpoint(path, {})
    state = {name: value.clone() for name, value in state.items()}
    state["0.fc2.bias"] += 1
    save_checkpoint(path, state, {**about, "weights": fingerprint(state)})
    with pytest.raises(UserError, match=r"best_.*batch_1_.* was trained from another model than .*batch_0_.* is"):
        active_learning(work, TRIALS)


def test_a_checkpoint_of_another_network(data, tmp_path):
    work = workspace(data, tmp_path)
    path = work.folder.initial(TRIALS[0].distortion, unsupervised=True)
    about = {"kind": "initial", "init": "rotation", "ir": 20, "nr": 0.0, "member": 0, "select": "test"}
    save_checkpoint(path, {"w": torch.zeros(2)}, {**about, **work.identity()})
    with pytest.raises(UserError, match="of another network"):
        begin(Journal(work, TRIALS[0]), 0).starting_models()


def test_a_rotation_model_gets_a_new_last_layer(data, tmp_path):
    work = workspace(data, tmp_path)
    make_initial(work, *TRIALS)
    (model,), _ = begin(Journal(work, TRIALS[0]), 0).starting_models()
    state = snapshot(model)
    saved = torch.load(work.folder.initial("ir_20_nr_0", True), weights_only=True)
    assert state["fc2.weight"].shape == (10, 50)
    assert saved["state"]["fc2.weight"].shape == (4, 50)
    assert torch.equal(state["fc1.weight"], saved["state"]["fc1.weight"])
    assert 0 < saved["about"]["rotation_accuracy"] <= 100
    (again,), _ = begin(Journal(work, TRIALS[0]), 0).starting_models()
    assert torch.equal(snapshot(again)["fc2.weight"], state["fc2.weight"])
    (bare,), _ = begin(Journal(work, dataclasses.replace(TRIALS[0], init="rotation_conv")), 0).starting_models()
    kept = {name for name, value in snapshot(bare).items() if torch.equal(value, state[name])}
    assert kept == {"conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias", "fc2.weight", "fc2.bias"}
    assert abs(float(bare.fc1.weight.detach().abs().max()) - 320**-0.5) < 1e-3  # fresh: uniform in +-1/sqrt(fan-in)


def test_initial_models_that_are_there_are_kept(data, tmp_path):
    work = workspace(data, tmp_path)
    make_initial(work, *TRIALS)
    reports = []
    work.report = lambda event, **info: reports.append((event, info["init"], info["skipped"]))
    make_initial(work, *TRIALS)
    assert reports == [("initial", "random", True), ("initial", "rotation", True)]


def test_descriptor_files_are_kept_on_request(data, tmp_path):
    work = workspace(data, tmp_path)
    make_initial(work, *TRIALS)
    active_learning(work, TRIALS, keep_descriptors=True)
    names = sorted(path.name for path in (tmp_path / "run0" / "descr").glob("*.npy"))
    assert [name.split("_")[0] for name in names] == ["pool", "pool", "validation", "validation"]


# The protocol of an iteration


def altered(work, stage, **changes):
    """The workspace with other constants of its `retraining` or `pretraining`."""
    recipe = dataclasses.replace(getattr(work.experiment, stage), **changes)
    work.experiment = dataclasses.replace(work.experiment, **{stage: recipe})
    return work


def weights_after(work, trial, b):
    return Journal(work, trial).weights(b)[1]


@pytest.mark.parametrize("select", ["test", "val"])
def test_an_iteration_that_never_improves_keeps_what_it_started_from(data, tmp_path, select):
    """Weights, accuracy and per-class accuracies, and the record says epoch 0."""
    work, trial = workspace(data, tmp_path), dataclasses.replace(TRIALS[0], select=select)
    make_initial(work, trial)
    work.experiment = dataclasses.replace(work.experiment, iterations=1)
    active_learning(altered(work, "retraining", epochs=6), [trial])
    work.experiment = dataclasses.replace(work.experiment, iterations=2)
    work.recorded = work.settings()  # as if the settings were the same
    active_learning(altered(work, "retraining", lr=0.5), [trial])  # ten times too high: the model is ruined at once
    first, second = work.folder.results()
    assert first["epochs"][0] > 0
    assert second["epochs"] == [0]
    assert second["accuracy"] == first["accuracy"] > 15
    assert second["accuracy_per_class"] == first["accuracy_per_class"]
    assert weights_after(work, trial, 0) == weights_after(work, trial, 1)
    last = dataclasses.replace(TRIALS[0], select="last")
    make_initial(work, last)
    work.experiment = dataclasses.replace(work.experiment, iterations=1)
    active_learning(work, [last])
    ruined = [r for r in work.folder.results() if last.describes(r)]
    assert [r["epochs"] for r in ruined] == [[6]]
    assert ruined[0]["accuracy"] < first["accuracy"]


def test_only_what_select_needs_is_evaluated(data, tmp_path, monkeypatch):
    """The evaluations of an iteration of 3 epochs."""
    work = altered(workspace(data, tmp_path), "retraining", epochs=3)
    counts = {}
    evaluate = Evaluator.__call__

    def counted(self, model, best=None):
        name = "test" if self.split is work.test else "val" if len(self.split) == 500 else "other"
        counts[name] = counts.get(name, 0) + 1
        return evaluate(self, model, best)

    for select, wanted in (("test", {"test": 4}), ("val", {"val": 4, "test": 1}), ("last", {"test": 1})):
        trial = Trial(20, "random", 0, select=select)
        make_initial(work, trial)
        current = begin(Journal(work, trial), 0)
        acquired = current.keep(choose(current))
        monkeypatch.setattr(Evaluator, "__call__", counted)
        current.finish(train(current, label(current, acquired)))
        monkeypatch.setattr(Evaluator, "__call__", evaluate)
        assert counts == wanted
        counts.clear()
    measured = {r["select"]: {k for k in r if k.startswith("accuracy_")} for r in work.folder.results()}
    always = {"accuracy_members", "accuracy_per_class"}
    assert measured == {
        "test": {*always, "accuracy_last"},
        "val": {*always, "accuracy_validation"},
        "last": always,
    }


@pytest.mark.parametrize(("make", "size"), [(LeNet, (1, 28, 28)), (ResNet10, (3, 32, 32))])
def test_no_dropout_acts_in_training(make, size):
    """Not for any method: two passes in training mode give the same, and the samples of `dropout_mode` do not."""
    torch.manual_seed(0)
    model, images = make(), torch.randn(8, *size)
    model.train()
    assert torch.equal(model(images)[0], model(images)[0])
    with dropout_mode([model]):
        assert not torch.equal(model(images)[0], model(images)[0])


def test_training_of_an_uncertainty_method_is_that_of_random_choice(data, tmp_path):
    """At b=0, where both draw at random, varR and random choice train the same weights to the bit."""
    work = altered(workspace(data, tmp_path, samples=4), "retraining", epochs=2)
    pair = [Trial(20, method, 0) for method in ("random", "varR")]
    make_initial(work, *pair)
    work.experiment = dataclasses.replace(work.experiment, iterations=1)
    active_learning(work, pair)
    assert weights_after(work, pair[0], 0) == weights_after(work, pair[1], 0)
    random, varr = work.folder.results()
    for key in ("accuracy", "accuracy_last", "accuracy_per_class", "epochs"):
        assert random[key] == varr[key]


def test_the_rotation_model_is_trained_on_the_distorted_pool(data, tmp_path, monkeypatch):
    """And on its images alone, neither on validation images nor on those that the imbalance leaves out."""
    work, seen = workspace(data, tmp_path), []
    monkeypatch.setattr(pretrain, "fit", lambda model, split, *rest: seen.append(split))
    make_initial_models(work, 20, 0.0)
    pool, train = work.pool(20, 0.0, "ir_20_nr_0"), work.train
    assert len(seen) == 1
    assert torch.equal(seen[0].images, pool.images)
    assert len(pool) < len(train) - len(work.validation())


def test_the_rotation_model_is_its_best_epoch(data, tmp_path):
    work = altered(workspace(data, tmp_path), "pretraining", epochs=3)
    about = {}
    for select in ("test", "val", "last"):
        make_initial_models(work, 20, 0.0, select=select)
        path = work.folder.initial("ir_20_nr_0", True, select=select)
        saved = torch.load(path, weights_only=True)
        about[select] = saved["about"]
        model = work.network(4)
        model.load_state_dict(saved["state"])
        split = work.validation() if select == "val" else work.test
        assert saved["about"]["rotation_accuracy"] == Evaluator(split, 100, rotate)(model).accuracy
    assert about["last"]["epoch"] == 3
    assert about["test"]["rotation_accuracy"] >= about["last"]["rotation_accuracy"]
    ruined = altered(workspace(data, tmp_path / "ruined"), "pretraining", lr=0.5)
    make_initial_models(ruined, 20, 0.0)
    saved = torch.load(ruined.folder.initial("ir_20_nr_0", True), weights_only=True)
    assert saved["about"]["epoch"] == 0  # the untrained model
    untrained = ruined.random_state(4, "init", 0)
    assert all(torch.equal(saved["state"][name], value) for name, value in untrained.items())


@pytest.mark.parametrize(
    ("below", "restarts", "attempt", "endings"),
    [
        (0.0, 2, 0, []),
        (101.0, 0, 0, ["starts such a training again"]),
        (101.0, 2, 2, [*["with the images in another order"] * 2, "starts such a training again"]),
    ],
)
def test_a_stalled_rotation_training(data, tmp_path, below, restarts, attempt, endings):
    """It is named, and started again as often as is allowed, in another order."""

    def made(folder, **changes):
        work, warnings = workspace(data, tmp_path / folder, **changes), []
        work.report = lambda event, **info: warnings.append(info["text"]) if event == "warning" else None
        make_initial(work, *TRIALS)
        path = work.folder.initial("ir_20_nr_0", True)
        return *load_checkpoint(path, {}), [text for text in warnings if "has stalled" in text]

    state, about, warnings = made("a", stalled_below=below, restarts=restarts)
    assert [text.endswith(end) for text, end in zip(warnings, endings, strict=True)] == [True] * len(endings)
    assert about["attempt"] == attempt
    assert about["first_epoch_accuracy"] == about["rotation_accuracy"]  # the only epoch
    assert about["behaviour"]["pretraining.restarts"] == restarts
    plain = made("b")[0]
    assert (fingerprint(state) == fingerprint(plain)) == (attempt == 0)
    with pytest.raises(UserError, match=rf"pretraining.restarts = {restarts}, this command says 1: delete it"):
        make_initial(workspace(data, tmp_path / "a", stalled_below=below, restarts=1), *TRIALS)


def test_a_run_of_an_earlier_protocol_is_not_continued(data, tmp_path):
    work = workspace(data, tmp_path)
    old = {key: value for key, value in work.settings().items() if key != "protocol"}
    write_json(work.folder.path / "manifest.json", {"run": 0, "format": FORMAT, "settings": old, "sessions": []})
    with pytest.raises(UserError, match="earlier version"):
        work.folder.check_manifest(work.settings())
