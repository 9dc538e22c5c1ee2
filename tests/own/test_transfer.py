"""Pretrained networks of torchvision: their weights, the new head, and what is trained."""

import pytest
import torch
import torchvision
from sklearn.linear_model import LogisticRegression
from torch import nn

from alfk.data.split import Split
from alfk.own import transfer
from alfk.own.transfer import NoWeights, Training, fit_head, frozen_blocks, head_name, pretrained, renew_head, train
from tests.helpers import normal, refuses, seeded

ARCH = "shufflenet_v2_x0_5"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with weights of a network for seven classes."""
    path = tmp_path_factory.mktemp("weights") / "seven.pth"
    torch.save(transfer.untrained(ARCH, 7, seed=5).state_dict(), path)
    return path


def images(count, classes=3):
    labels = torch.arange(count) % classes
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=seeded(1))
    pixels[:, :, 8:24, 8:24] = (80 * labels[:, None, None, None]).byte()
    return Split(pixels, labels, transfer.MEAN, transfer.STD)


def test_head_is_the_logistic_regression_of_scikit_learn():
    features, labels = 3 * normal(1, 90, 6), torch.arange(90) * 7 % 4
    head = nn.Linear(6, 4)
    fit_head(head, features, labels, decay=0.5)
    scale = features.square().mean().sqrt().item()
    reference = LogisticRegression(C=2.0, max_iter=5000, tol=1e-8).fit(features / scale, labels)
    torch.testing.assert_close(
        torch.softmax(head(features), 1).detach().double(),
        torch.from_numpy(reference.predict_proba(features / scale)),
        atol=1e-3,
        rtol=1e-3,
    )


def test_class_without_labels_becomes_unlikely_but_stays_possible():
    features, labels = normal(1, 40, 6), torch.arange(40) % 2
    head = nn.Linear(6, 3)
    fit_head(head, features, labels)
    p = torch.softmax(head(features), 1)[:, 2]
    assert p.min() > 0
    assert p.max() < 0.1


def test_weights_of_a_file_are_taken_but_for_the_head(weights):
    network, state = pretrained(ARCH, weights), torch.load(weights, weights_only=True)
    head = head_name(network)
    assert head == "fc"
    assert network.fc.out_features == 1000
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]) != name.startswith("fc.")


def test_what_is_no_file_of_weights_is_refused(weights, tmp_path):
    refuses(lambda: pretrained("resnet18", weights), "is not a state_dict of resnet18: ")
    refuses(lambda: pretrained(ARCH, tmp_path / "none.pth"), "there is no file")
    (tmp_path / "text.pth").write_text("text")
    refuses(lambda: pretrained(ARCH, tmp_path / "text.pth"), "is not a file of weights")
    torch.save([1], tmp_path / "list.pth")
    refuses(lambda: pretrained(ARCH, tmp_path / "list.pth"), "holds no state_dict")


def test_weights_that_cannot_be_downloaded(monkeypatch):
    def offline(arch, weights):
        raise OSError("<urlopen error [Errno -2] Name or service not known>")

    monkeypatch.setattr(torchvision.models, "get_model", offline)
    with pytest.raises(NoWeights, match=r"could not be downloaded \(<urlopen error"):
        pretrained("resnet18", None)


@pytest.mark.parametrize("freeze", ["backbone", 2, "none"])
def test_frozen_blocks_stay_as_they_are_and_others_do_not(weights, freeze):
    network = pretrained(ARCH, weights)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    frozen = {id(p) for block in frozen_blocks(network, freeze) for p in block.parameters()}
    names = {name for name, p in network.named_parameters() if id(p) in frozen}
    train(network, images(12), 3, Training(freeze, epochs=2), 0, transfer.unwatched)
    assert network.fc.out_features == 3
    for name, value in network.state_dict().items():
        if name.startswith("fc."):
            continue
        part = ".".join(name.split(".")[:-1])
        kept = any(other.startswith(f"{part}.") for other in names)
        if value.is_floating_point():
            assert torch.equal(value, before[name]) == kept, name
    if freeze == 2:
        assert 0 < len(names) < len(before)


def test_training_is_repeatable_and_leaves_the_global_generator_alone(weights):
    states = []
    for _ in range(2):
        network, before = pretrained(ARCH, weights), torch.random.get_rng_state()
        train(network, images(12), 3, Training("none", epochs=1), 0, transfer.unwatched)
        assert torch.equal(torch.random.get_rng_state(), before)
        states.append(network.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_more_blocks_than_there_are():
    network = transfer.untrained(ARCH, 3, 0)
    count = len(frozen_blocks(network, "backbone"))
    refuses(lambda: frozen_blocks(network, count + 1), f"the network has {count} blocks before its head")


def test_images_that_a_network_cannot_take():
    network = transfer.untrained("alexnet", 2, 0)
    transfer.check_size(network, 64)
    refuses(lambda: transfer.check_size(network, 32), "--image-size 32: the network takes no such images")


def test_rotation_changes_all_weights():
    network = transfer.untrained(ARCH, 3, 0)
    before = network.conv1[0].weight.clone()
    transfer.pretrain_by_rotation(network, images(8), 1, 0, transfer.unwatched)
    assert network.fc.out_features == 4
    assert not torch.equal(network.conv1[0].weight, before)


@pytest.mark.parametrize("arch", ["mobilenet_v2", "resnet18", "vit_b_32", "densenet121", "efficientnet_b0"])
def test_heads_of_torchvisions_networks(arch):
    with torch.device("meta"):
        network = torchvision.models.get_model(arch, weights=None, num_classes=11)
    assert network.get_submodule(head_name(network)).out_features == 11
    assert frozen_blocks(network, "backbone")


def test_new_head_depends_on_its_seed_alone():
    heads = []
    for seed in (0, 0, 1):
        network = transfer.untrained(ARCH, 5, 0)
        torch.rand(3)
        renew_head(network, 4, seed)
        heads.append(network.fc.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
