"""The paper in one sitting: active learning for biased data by Fisher-kernel matching, in plain PyTorch.

    python3 examples/paper.py       # half a minute on two CPU cores; needs torch and scikit-learn alone

D. Gudovskiy et al., "Deep Active Learning for Biased Datasets via Fisher Kernel Self-Supervision", CVPR 2020. Banners
name the paper's sections and those of docs/method.md; the formulas are numbered here. In the pool of scikit-learn's
digits the classes 5 to 9 are 20 times rarer than 0 to 4; the validation and test images are balanced. Prints the test
accuracy of random choice and of R_{z,g}. Rotation pretraining is left out: models start from random weights.
The package alfk computes the same faster, and its tests compare it with the functions below.
"""

import copy

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

RUNS, ITERATIONS, QUERY_SIZE, IMBALANCE = 3, 6, 15, 20
EPOCHS, BATCH_SIZE, LEARNING_RATE, MOMENTUM, DECAY_EVERY = 50, 25, 0.1, 0.5, 15

# ---- A biased pool and a task model (Section 5; docs/method.md, 2 and 3) --------------------------------------------


def biased_digits():
    """(images (N, 1, 8, 8), labels (N,)) of the pool, the validation set and the test set."""
    data = load_digits()
    order = torch.randperm(len(data.target))
    images = (torch.tensor(data.images).float().unsqueeze(1)[order] - 4.9) / 6.0  # mean and deviation of the pixels
    labels = torch.tensor(data.target)[order]
    test, validation, rest = torch.arange(len(labels)).split([400, 500, 897])
    common, rare = rest[labels[rest] < 5], rest[labels[rest] >= 5]
    pool = torch.cat([common, rare[: len(common) // IMBALANCE]])
    return [(images[part], labels[part]) for part in (pool, validation, test)]


class Net(nn.Module):
    """Images -> logits and *taps*: the layer outputs that describe an image, each of them one scale."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 10, 3, padding=1), nn.Conv2d(10, 20, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(20 * 16, 50), nn.Linear(50, 10)

    def forward(self, images):
        x1 = F.relu(self.conv1(images))
        x2 = F.relu(F.max_pool2d(self.conv2(x1), 2))
        x3 = F.relu(self.fc1(x2.flatten(1)))
        return self.fc2(x3), [x1, x2, x3]


# ---- Descriptors: a Fisher kernel with the identity as Fisher information (Section 4.1; docs/method.md, 5) ----------


def average(tap):
    """The mean over positions of (N, channels, height, width); (N, channels) is returned as it is."""
    return tap.mean((2, 3)) if tap.ndim == 4 else tap


def z(model, images):
    """(1) Features z_i = average(a_i), a_i the outputs of a tap: one (N, channels) for each tap."""
    return [average(tap).detach() for tap in model(images)[1]]


def g(model, images, labels):
    """(2) Fisher scores g_i = average(d cross-entropy(logits_i, s_i) / d a_i) for labels s: like z.

    The gradient of the sum over images contains each image's own gradient.
    """
    logits, taps = model(images)
    loss = F.cross_entropy(logits, labels, reduction="sum")
    return [average(gradient) for gradient in torch.autograd.grad(loss, taps)]


def standardise(vectors):
    """(3) v~ = (v - mean(v)) / (std(v) + 1e-10), each row by its own mean and unbiased standard deviation."""
    return (vectors - vectors.mean(1, keepdim=True)) / (vectors.std(1, keepdim=True) + 1e-10)


def similarity(a, b):
    """(4) R(i, j) = sum over taps of <a~_i, b~_j>, Pearson correlations up to a constant. (5) R_{z,g} = R_z + R_g."""
    return sum(standardise(x) @ standardise(y).T for x, y in zip(a, b, strict=True))


# ---- Pseudo-labels for g of the pool, whose labels are unknown (Section 4.4; docs/method.md, 6) ---------------------


def nearest_labels(R_z, validation_labels):
    """(6) S = p(y, z), the paper's method and the one run below: the true label of the most similar validation image.

    R_z is (pool images, validation images).
    """
    return validation_labels[R_z.argmax(1)]


def statistics(model, copies, classes):
    """Z (N, L, K) and G (N, classes, L, K): z, and g for every class, of K perturbed copies of N images."""
    Z = [torch.cat(z(model, images), 1) for images in copies]
    G = [[torch.cat(g(model, x, torch.full((len(x),), c)), 1) for c in range(classes)] for x in copies]
    return torch.stack(Z, 2), torch.stack([torch.stack(scores, 1) for scores in G], 3)


def trace(Z, G):
    """(7) S = tr(C_{z,g}), an alternative: the label is the arg max over c of sum_k <z_k, g_{k,c}>. (N, classes)."""
    return (Z.unsqueeze(1) * G).sum((2, 3))


def mutual_information(Z, G):
    """(8) S = I(z; g), another one: log|Z Z'| + log|G_c G_c'| - log|W W'| with W = [Z; G_c]. (N, classes)."""

    def log_det(X):
        return torch.logdet(X @ X.mT + 1e-8 * torch.eye(X.shape[-2], dtype=X.dtype))

    Z = Z.unsqueeze(1).expand_as(G)
    return log_det(Z) + log_det(G) - log_det(torch.cat([Z, G], 2))


# ---- Matching the pool to the misclassified validation images (Section 4.3; docs/method.md, 7) ----------------------


def k_centre(R, n, first):
    """(9) Greedy k-centre: the next centre's largest similarity to the centres so far is smallest."""
    centres = [first]
    while len(centres) < n:
        largest = R[:, centres].max(1).values
        largest[centres] = torch.inf
        centres.append(int(largest.argmin()))
    return centres


def walk(R, n):
    """(10) n images, rank by rank: the first matches of all centres by descending R (centres, images), then the second,
    and so on; an image is taken once.
    """
    ranked, taken = R.sort(dim=1, descending=True, stable=True), []
    for similarities, images in zip(ranked.values.T, ranked.indices.T, strict=True):
        for image in images[similarities.argsort(descending=True, stable=True)].tolist():
            if image not in taken:
                taken.append(image)
            if len(taken) == n:
                return taken
    raise ValueError(f"there are fewer than {n} images")


def choose(model, pool, validation, labels):
    """The pool images to label next by R_{z,g}: their positions among the unlabelled images `pool`."""
    z_pool, z_validation = z(model, pool), z(model, validation)
    g_pool = g(model, pool, nearest_labels(similarity(z_pool, z_validation), labels))
    wrong = (model(validation)[0].argmax(1) != labels).nonzero().flatten()  # never none in this example
    z_wrong, g_wrong = z(model, validation[wrong]), g(model, validation[wrong], labels[wrong])
    R = similarity(z_wrong, z_pool) + similarity(g_wrong, g_pool)
    if len(wrong) > QUERY_SIZE:
        among = similarity(z_wrong, z_wrong) + similarity(g_wrong, g_wrong)
        R = R[k_centre(among, QUERY_SIZE, int(torch.randint(len(wrong), ())))]
    return walk(R, QUERY_SIZE)


# ---- The loop (Algorithm 1; docs/method.md, 1 and 8) ----------------------------------------------------------------


def train(model, images, labels, test):
    """SGD from the weights of the previous iteration. Keeps the epoch with the best test accuracy, which it returns in
    percent; the start counts as an epoch. (The paper's protocol; it is optimistic.)
    """
    optimiser = torch.optim.SGD(model.parameters(), LEARNING_RATE, MOMENTUM)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, DECAY_EVERY)  # times 0.1
    best = -1.0
    for epoch in range(EPOCHS + 1):
        if epoch > 0:
            for batch in torch.randperm(len(labels)).split(BATCH_SIZE):
                optimiser.zero_grad()
                F.cross_entropy(model(images[batch])[0], labels[batch]).backward()
                optimiser.step()
            schedule.step()
        with torch.no_grad():
            accuracy = 100 * (model(test[0])[0].argmax(1) == test[1]).float().mean().item()
        if accuracy > best:
            best, weights = accuracy, copy.deepcopy(model.state_dict())
    model.load_state_dict(weights)
    return best


def active_learning(method, run):
    """The test accuracy in percent after each iteration."""
    torch.manual_seed(run)
    (pool, pool_labels), validation, test = biased_digits()
    model, labelled, accuracies = Net(), [], []
    for _ in range(ITERATIONS):
        left = [i for i in range(len(pool)) if i not in labelled]
        chosen = choose(model, pool[left], *validation) if method == "R_{z,g}" else torch.randperm(len(left))
        labelled += [left[i] for i in chosen[:QUERY_SIZE]]
        accuracies.append(train(model, pool[labelled], pool_labels[labelled], test))
    return accuracies


def main():
    torch.set_num_threads(1)  # the images are small
    print("labels    ", *(f"{QUERY_SIZE * (b + 1):6}" for b in range(ITERATIONS)))
    for method in ("random", "R_{z,g}"):
        curves = torch.tensor([active_learning(method, run) for run in range(RUNS)])
        print(f"{method:10}", *(f"{accuracy:6.1f}" for accuracy in curves.mean(0)))
    print(f"test accuracy in percent, mean of {RUNS} runs")


if __name__ == "__main__":
    main()
