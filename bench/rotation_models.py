"""Rotation pretraining on one pool from initial weights of two kinds, to test whether their random source matters.

    python3 bench/rotation_models.py                # 20 trainings each, hours on one core
    python3 bench/rotation_models.py --start 0 --stop 10
    python3 bench/rotation_models.py --pairs 1,1 2,1 1,2    # first epochs of weights and shuffles by number

"seeded" draws a LeNet's weights as in the experiments (`uniform_fan_in`, with a separate generator), "module" keeps
the weights of torch's layers. Trainings of either kind with the same number have the same shuffles. Each training
prints one line, the rotation accuracy in percent on the test images after every epoch; then follow, for each kind, the
mean over trainings of the best epoch, and tests of the difference between the kinds. With --pairs W,S the weights are
those of the kind "seeded".
"""

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from alfk.data.bias import split_validation, thin_minority
from alfk.experiment.training import Evaluator, fit, rotate
from alfk.networks.weights import uniform_fan_in
from alfk.support.seeding import generator
from bench.common import guarded, mnist_on, mnist_parser
from mnist.config import MNIST


def main() -> int:
    parser = mnist_parser(__doc__)
    parser.add_argument("--start", type=int, default=0, help="first training (0)")
    parser.add_argument("--stop", type=int, default=20, help="training before which to stop (20)")
    parser.add_argument("--kinds", nargs="+", default=["seeded", "module"], choices=["seeded", "module"])
    parser.add_argument("--pairs", nargs="+", metavar="W,S", help="weights W with shuffles S, for one epoch")
    options = parser.parse_args()
    torch.set_num_threads(1)
    train, test = mnist_on(options)
    rest = split_validation(train.labels, MNIST.validation_per_class, generator(0, "rotation models", "split"))[1]
    kept = thin_minority(train.labels[rest], MNIST.minority, 100, generator(0, "rotation models", "bias"))
    pool, found = train.subset(rest[kept]), {kind: [] for kind in options.kinds}
    one_epoch = dataclasses.replace(MNIST.pretraining, epochs=1)
    for weights, shuffles in (map(int, pair.split(",")) for pair in options.pairs or ()):
        (accuracy,) = pretrain("seeded", weights, pool, test, shuffles, one_epoch)
        print(f"weights {weights} shuffles {shuffles} {accuracy:.2f}", flush=True)
    if options.pairs:
        return 0
    for number in range(options.start, options.stop):
        for kind in options.kinds:
            accuracies = pretrain(kind, number, pool, test, number, MNIST.pretraining)
            found[kind].append(max(accuracies))
            print(kind, number, *(f"{value:.2f}" for value in accuracies), flush=True)
    for kind, best in found.items():
        print(f"{kind}: {np.mean(best):.2f} ± {np.std(best):.2f} %, {len(best)} trainings, {min(best)} to {max(best)}")
    if len(found) == 2 and options.stop - options.start > 1:
        from scipy.stats import ks_2samp, ttest_ind  # slow to import

        t_test, ks_test = (test(*found.values()).pvalue for test in (ttest_ind, ks_2samp))
        print(f"difference: t-test p = {t_test:.2f}, Kolmogorov-Smirnov p = {ks_test:.2f}")

    return 0


def pretrain(kind, number, pool, test, shuffles, recipe):
    """Rotation accuracy after every epoch."""
    draws = generator(number, "rotation models", kind)
    torch.manual_seed(int(torch.randint(2**31, (1,), generator=draws)))
    model = MNIST.network(4).to(memory_format=torch.channels_last)
    if kind == "seeded":
        uniform_fan_in(model, draws)
    evaluator, accuracies = Evaluator(test, MNIST.descriptor_batch, rotate), []

    def after_epoch(_):
        accuracies.append(evaluator(model).accuracy)

    fit(model, pool, recipe, generator(shuffles, "rotation models", "shuffle"), rotate, after_epoch, threads=1)
    return accuracies


if __name__ == "__main__":
    sys.exit(guarded(main))
