"""Active learning on a folder of images whose labels people enter: what `alfk ask` computes and keeps.

A project is a folder with one deciding file, state.json: the settings, the images by name, and of each round which
images were asked for and what the network trained on their labels predicts for the held-out images. Beside it are
model.pt, the last network, and query_b<round>.pt, the reasons of a request. Everything is found again by the names of
the files, so that images and classes can join or leave at any time.

Of the clean images in val/ one half is held out, to measure accuracy. The others guide the choice (their errors are
what a query looks for); with `add_validation` every second one of them is trained on instead.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alfk.data.split import Split
from alfk.method.acquisition import get_method
from alfk.networks.outputs import logits_of
from alfk.own import transfer
from alfk.own.annotations import Annotations, read_annotations
from alfk.own.folders import Listing, changes, class_of, listing
from alfk.own.queries import Query, query
from alfk.own.transfer import NoWeights, Training, Watch
from alfk.support.checkpoints import load_checkpoint, save_checkpoint
from alfk.support.errors import UserError
from alfk.support.files import read_json, write_json
from alfk.support.seeding import generator

Say = Callable[[str], None]

FIX = "give another folder with --work to start anew"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the flags of `alfk ask` choose. All may change between rounds; they count from the next training on.

    Attributes:
        method: key of the acquisition method.
        query_size: images in a request.
        arch: one of `transfer.ARCHITECTURES`.
        weights: a file; "download" for torchvision's own; "none" for pretraining by rotation.
        freeze: see `Training`; None is "backbone" with pretrained weights, "none" without.
        epochs, lr, head_lr: see `Training`.
        rotation_epochs: of pretraining by rotation.
        image_size: pixels.
        add_validation: whether half of the images that are not held out are trained on.
        label_studio: whether requests are also written for Label Studio.
        seed: of all random draws.
        labels: files that are read besides labels*.csv and labels*.json of the project.
    """

    method: str = "Rzg_fl"
    query_size: int = 40
    arch: str = "resnet18"
    weights: str = "download"
    freeze: str | int | None = None
    epochs: int = Training.epochs
    lr: float = Training.lr
    head_lr: float = Training.head_lr
    rotation_epochs: int = 10
    image_size: int = 224
    add_validation: bool = False
    label_studio: bool = False
    seed: int = 0
    labels: list[str] = dataclasses.field(default_factory=list)

    @property
    def training(self) -> Training:
        freeze = self.freeze if self.freeze is not None else "none" if self.weights == "none" else "backbone"
        return Training(freeze, self.epochs, self.lr, self.head_lr)


@dataclasses.dataclass(frozen=True)
class Request:
    """A query that people label.

    Attributes:
        b: number of the round, from 0.
        asked: (n) names of the images, below pool/.
        matched: (n) names of the clean images that they match, below val/; None for a method that does not match.
        query: whose indices and matches are positions in `asked` and `matched`.
    """

    b: int
    asked: list[str]
    matched: list[str] | None
    query: Query


def _shown(value: object) -> object:
    """The value of a setting for a line of text."""
    if isinstance(value, list):
        return " ".join(value) or "none"
    return "default" if value is None else {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


class Project:
    """A folder of images, and the folder `work` that keeps the state of the project.

    Attributes:
        settings: those given, those of the last command, or the defaults, in this order.
        state: the content of state.json.
        news: lines about what has changed since the last command.
    """

    def __init__(self, root: Path, work: Path, given: Mapping[str, Any], device: torch.device, say: Say, watch: Watch):
        """
        Args:
            given: settings that the command names.
            say: called with lines about what is being done.
            watch: shows the progress of a training.
        Raises:
            UserError: the folder's images do not fit, or the state cannot be read.
        """
        self.root, self.work, self.device, self.say, self.watch = root, work, device, say, watch
        self.listed, self.file = listing(root), work / "state.json"
        self.news: list[str] = []
        found = read_json(self.file, fix=FIX) if self.file.exists() else None
        if found is None and list(work.glob("ask_b*.csv")):
            raise UserError(f"{work} has requests but no state.json: move these files away, or {FIX}")
        self.state = found or {
            "settings": {},
            "classes": [],
            "pool": {},
            "clean": {},
            "held_out": [],
            "removed": [],
            "rounds": [],
        }
        self._set(given)
        self._take(self.listed)

    def _set(self, given: Mapping[str, Any]) -> None:
        before = self.state["settings"]
        self.settings = Settings(**{**before, **given})
        now = dataclasses.asdict(self.settings)
        changed = [f"{key} {_shown(before[key])} -> {_shown(now[key])}" for key in before if before[key] != now[key]]
        if changed:
            self.news.append(f"changed: {', '.join(changed)}; this counts from now on")
        self.state["settings"] = now

    def _take(self, listed: Listing) -> None:
        """Take over the listed images and their classes, and hold out every second new clean image of a class."""
        state, started = self.state, bool(self.state["classes"])
        for part in ("pool", "clean"):
            lines = changes(state[part], getattr(listed, part), "val" if part == "clean" else part)
            self.news += lines if started else []
        added = [name for name in listed.classes if name not in state["classes"]]
        if started and added:
            self.news.append(f"new class{'es' * (len(added) > 1)}: {', '.join(added)}")
        state["classes"] += added
        if len(state["classes"]) < 2:
            raise UserError(f"{self.root}/val has the class {state['classes'][0]} alone: two or more are needed")
        held_out = [name for name in state["held_out"] if name in listed.clean]
        for name in state["classes"]:
            members = [file for file in listed.clean if class_of(file) == name]
            new = [file for file in members if file not in state["clean"]]
            order = torch.randperm(len(new), generator=generator(self.settings.seed, "held out", name)).tolist()
            kept = sum(file in set(held_out) for file in members)
            missing = (len(members) + 1) // 2 - kept
            held_out += [new[i] for i in order[: max(0, missing)]]
            if name in added and len(members) < 2:
                raise UserError(
                    f"{self.root}/val/{name} has one image: one to check by and one to choose by are needed"
                )
        removed = sorted({*state["removed"], *state["pool"]} - {*listed.pool})
        state |= {"pool": listed.pool, "clean": listed.clean, "held_out": sorted(held_out), "removed": removed}

    def save(self) -> None:
        """Write state.json."""
        write_json(self.file, self.state)

    # Images

    @property
    def classes(self) -> list[str]:
        return self.state["classes"]

    @property
    def held_out(self) -> list[str]:
        """Names of the clean images that accuracy is measured on."""
        return self.state["held_out"]

    def clean(self, trained: bool, first: bool = False) -> list[str]:
        """Names of the clean images that are trained on in every round, or of those that guide the choice.

        With `add_validation`, or before the `first` request, every second one is trained on; with `add_validation` a
        method that needs no clean images leaves all of them to the training.
        """
        apart, names, settings = set(self.held_out), [], self.settings
        for label in self.classes:
            members = [name for name in self.state["clean"] if class_of(name) == label and name not in apart]
            if settings.add_validation and not get_method(settings.method).needs_validation:
                names += members if trained else []
            elif settings.add_validation or first:
                names += members[int(trained) :: 2]
            else:
                names += [] if trained else members
        return names

    def split(self, pool: Sequence[str] = (), clean: Sequence[str] = (), labels: Sequence[str] | None = None) -> Split:
        """Images of pool/ and then of val/, by name.

        Args:
            labels: of the images of pool/; None if they are unknown, then `clean` has to be empty.
        """
        known = labels is not None or not pool
        return Split.from_files(
            [self.root / "pool" / name for name in pool] + [self.root / "val" / name for name in clean],
            [*(labels or ()), *map(class_of, clean)] if known else None,
            size=self.settings.image_size,
            mean=transfer.MEAN,
            std=transfer.STD,
            classes=self.classes,
        ).to(self.device)

    # Labels

    def annotations(self, requests: str = "ask_b*.csv") -> Annotations:
        """What people entered for the images that are there.

        Args:
            requests: which of the project's requests are read.
        """
        for path in self.settings.labels:
            if not Path(path).exists():
                raise UserError(f"there is no file {path}: put it there, or name others with --labels, or none")
        forms = (requests, "labels*.csv", "labels*.json")
        files = [path for form in forms for path in sorted(self.work.glob(form))] + self.settings.labels
        found = read_annotations(files, [*self.state["pool"], *self.state["removed"]], self.classes)
        count = len(self.state["pool"])
        there = found.positions < count
        skipped, unsure = (each[each < count] for each in (found.skipped, found.unsure))
        return Annotations(found.positions[there], found.labels[there], skipped, unsure)

    @property
    def waiting(self) -> dict[str, Any] | None:
        """The last round, if its labels have not been trained on."""
        last = self.state["rounds"][-1] if self.state["rounds"] else None
        return last if last and last["predictions"] is None else None

    def unlabelled(self) -> list[str]:
        """The images of the waiting request that people have not reached yet; `unsure` counts only where it was
        entered into this request, since an earlier one is why they are asked again.
        """
        names, b = list(self.state["pool"]), len(self.state["rounds"]) - 1
        position = {name: i for i, name in enumerate(names)}
        asked = torch.tensor([position[name] for name in self.waiting["asked"] if name in position], dtype=torch.int64)
        here = self.annotations(f"ask_b{b}.csv").missing(asked)
        settled = self.annotations().settled
        return [names[i] for i in here[~torch.isin(here, settled)].tolist()]

    # Networks

    def start(self) -> nn.Module:
        """A network with the weights that every training starts from.

        If torchvision's weights cannot be downloaded it is pretrained by rotation, which is said.
        """
        settings = self.settings
        if settings.weights == "download":
            try:
                return transfer.pretrained(settings.arch, None)
            except NoWeights as problem:
                self.say(f"{problem}: pretraining by rotation instead, which learns far less; --weights FILE is better")
                self.settings = dataclasses.replace(settings, weights="none")
                self.state["settings"]["weights"] = "none"
        if self.settings.weights != "none":
            return transfer.pretrained(settings.arch, Path(settings.weights))
        return self._rotated()

    def _rotated(self) -> nn.Module:
        settings, path = self.settings, self.work / "rotation.pt"
        about = {"arch": settings.arch, "image_size": settings.image_size, "epochs": settings.rotation_epochs}
        network = transfer.untrained(settings.arch, 4, settings.seed)
        transfer.check_size(network, settings.image_size)
        if path.exists():
            state, found = load_checkpoint(path, {}, FIX)
            if found == about:
                network.load_state_dict(state)
                return network
        self.say("pretraining by rotation; if it is stopped, it starts again")
        network.to(self.device)
        pool = self.split(list(self.state["pool"]))
        transfer.pretrain_by_rotation(network, pool, settings.rotation_epochs, settings.seed, self.watch)
        save_checkpoint(path, network.state_dict(), about)
        return network

    def trained(self, data: Split) -> nn.Module:
        """The start network, trained on labelled images."""
        network = self.start()
        transfer.check_size(network, self.settings.image_size)
        samples = get_method(self.settings.method).inputs & {"uncertainty", "information"}
        if samples and not transfer.has_dropout(network):
            raise UserError(f"{self.settings.method} needs a network with dropout, such as -a mobilenet_v2")
        network.to(self.device)
        training = self.settings.training
        body = "the head" if training.freeze == "backbone" else f"the network, {training.epochs} epochs,"
        self.say(f"training {body} on {len(data)} images")
        transfer.train(network, data, len(self.classes), training, self.settings.seed, self.watch)
        return network

    def predictions(self, network: nn.Module) -> dict[str, str]:
        """The predicted class of each held-out image."""
        split = self.split(clean=self.held_out)
        logits = logits_of(self._tapped(network), split, transfer.EVALUATION_BATCH)
        return {name: self.classes[c] for name, c in zip(self.held_out, logits.argmax(1).tolist(), strict=True)}

    def _tapped(self, network: nn.Module) -> transfer.Tapped:
        return transfer.with_taps(network, self.settings.image_size)

    def _keep(self, network: nn.Module, name: str, b: int | None) -> None:
        """Write a network for people, and for the next request."""
        facts = {"arch": self.settings.arch, "image_size": self.settings.image_size, "round": b}
        facts |= {"classes": self.classes, "mean": transfer.MEAN, "std": transfer.STD}
        save_checkpoint(self.work / name, network.state_dict(), facts)

    def _model(self, b: int) -> nn.Module:
        """The network that chooses in round b: trained after round b - 1, or on clean images before the first one."""
        settings = self.settings
        if b == 0:
            names = self.clean(True, first=True)
            if names:
                return self.trained(self.split(clean=names))
            network = self.start()
            transfer.renew_head(network, len(self.classes), settings.seed)
            return network.to(self.device)
        state, about = load_checkpoint(self.work / "model.pt", {"round": b - 1}, FIX)
        network = transfer.untrained(about["arch"], len(about["classes"]), settings.seed)
        network.load_state_dict(state)
        return network.to(self.device)

    # Steps

    def _how(self, clean: int) -> dict[str, Any]:
        """What a network depends on besides the labels; networks that differ in it are not compared.

        Args:
            clean: number of clean images that it was trained on.
        """
        facts = {key: getattr(self.settings, key) for key in ("arch", "weights", "image_size", "seed")}
        return facts | dataclasses.asdict(self.settings.training) | {"clean": clean}

    def train_on_clean(self) -> bool:
        """Train on all clean images that are not held out, unless this was done; whether it was done now."""
        names = sorted({*self.clean(True), *self.clean(False)})
        how, before = self._how(len(names)), self.state.get("alone")
        if before and before["how"] == how and {*self.held_out} <= {*before["predictions"]}:
            return False
        network = self.trained(self.split(clean=names))
        self._keep(network, "clean.pt", None)
        self.state["alone"] = {"how": how, "predictions": self.predictions(network)}
        self.save()
        return True

    def _labels(self, annotations: Annotations) -> dict[str, str]:
        """Name of a labelled image of pool/ -> its class."""
        names, labels = list(self.state["pool"]), annotations.labels.tolist()
        return {names[i]: self.classes[c] for i, c in zip(annotations.positions.tolist(), labels, strict=True)}

    def is_behind(self, annotations: Annotations) -> bool:
        """Whether there are labels, classes or held-out images that the last network does not know."""
        rounds, trained = self.state["rounds"], {"classes": self.classes, "labels": self._labels(annotations)}
        if not rounds or self.waiting:
            return bool(rounds)
        return self.state["trained"] != trained or not {*self.held_out} <= {*rounds[-1]["predictions"]}

    def learn(self, annotations: Annotations) -> None:
        """Train on all labels so far.

        Raises:
            UserError: there are none.
        """
        labels, clean = self._labels(annotations), self.clean(True)
        if not len(labels) + len(clean):
            raise UserError(
                "every image so far was skipped or unsure: there is nothing to train on; label at least one, of these "
                f"or, in {self.work / 'labels.csv'} (columns file and label), of others in pool/"
            )
        data = self.split(list(labels), clean, list(labels.values()))
        network, b = self.trained(data), len(self.state["rounds"]) - 1
        predictions = self.predictions(network)
        self._keep(network, "model.pt", b)
        self.state["rounds"][-1] |= {
            "labelled": len(labels),
            "how": self._how(len(clean)),
            "predictions": predictions,
        }
        self.state["trained"] = {"classes": list(self.classes), "labels": labels}
        self.save()

    def ask(self, annotations: Annotations) -> bool:
        """Choose the images of the next request; whether there are any left."""
        names, b = list(self.state["pool"]), len(self.state["rounds"])
        last = set(self.state["rounds"][-1]["asked"] if b else ())
        left_out = {names[i] for i in annotations.skipped.tolist()}
        # people were unsure: not in the next request, but in later ones
        left_out |= last & {names[i] for i in annotations.unsure.tolist()}
        labels = self._labels(annotations)
        names = [name for name in names if name not in left_out]
        n = min(self.settings.query_size, len(names) - len(labels))
        if not n:
            return False
        guides = self.clean(False, first=b == 0)
        pool, guide, network = self.split(names), self.split(clean=guides) if guides else None, self._model(b)
        by = f" by {len(guides)} clean ones" if guides else ""
        self.say(f"choosing {n} of {len(names) - len(labels)} images{by}")
        found = query(
            self.settings.method,
            self._tapped(network),
            pool,
            guide,
            n,
            labelled=[i for i, name in enumerate(names) if name in labels],
            generator=generator(self.settings.seed, "query", b),
            annotate=lambda wanted: [labels[names[i]] for i in wanted.tolist()],
        )
        asked = [names[i] for i in found.indices.tolist()]
        matched = None if found.matches is None else [guides[i] for i in found.matches.tolist()]
        compact = {"indices": torch.arange(n), "pool_size": n, "classes": list(self.classes)}
        compact |= {} if matched is None else {"matches": torch.arange(n), "validation_size": n}
        values = {field.name: getattr(found, field.name) for field in dataclasses.fields(Query)} | compact
        save_checkpoint(self._query_file(b), values, {"round": b})
        self.state["rounds"].append({"asked": asked, "matched": matched, "labelled": None, "predictions": None})
        self.save()
        return True

    def _query_file(self, b: int) -> Path:
        return self.work / f"query_b{b}.pt"

    def request(self, b: int) -> Request:
        """The request of round b; without reasons if their file was lost."""
        each, path = self.state["rounds"][b], self._query_file(b)
        if not path.exists():
            return Request(b, each["asked"], None, Query(torch.arange(len(each["asked"]))))
        values, _ = load_checkpoint(path, {"round": b}, "delete it", weights=False)  # a score may be infinite
        return Request(b, each["asked"], each["matched"], Query(**{**values, "classes": tuple(values["classes"])}))

    # What is known

    def history(self) -> tuple[list[int], list[Tensor], Tensor, Tensor]:
        """For `alfk.progress_report`: labels at each round, predictions after each of them and the true classes of the
        held-out images, and predictions of the network that was trained on the clean images alone.

        Rounds whose network was trained otherwise than the last one, or which did not see all held-out images, are left
        out: what differs would be taken for an effect of the labels. So are those without fewer labels than the next
        ones, after images or labels were taken away.
        """
        trained = [each for each in self.state["rounds"] if each["predictions"] is not None]
        names = [name for name in self.held_out if name in trained[-1]["predictions"]]
        rounds = [r for r in trained if r["how"] == trained[-1]["how"] and {*names} <= {*r["predictions"]}]
        rounds = [r for i, r in enumerate(rounds) if all(r["labelled"] < s["labelled"] for s in rounds[i + 1 :])]
        number = {name: i for i, name in enumerate(self.classes)}
        all_predictions = [each["predictions"] for each in (*rounds, self.state["alone"])]
        rows = [torch.tensor([number[predictions[name]] for name in names]) for predictions in all_predictions]
        truth = torch.tensor([number[class_of(name)] for name in names])
        return [each["labelled"] for each in rounds], rows[:-1], truth, rows[-1]
