"""t-SNE maps of the test images' features, with accuracies (paper, Section 5)."""

import time
from collections.abc import Sequence

import numpy as np
import torch

from alfk.experiment.round import Round
from alfk.experiment.training import accuracy, accuracy_per_class
from alfk.method.descriptors import descriptors_of
from alfk.plotting.curves import rare_groups
from alfk.plotting.maps import Panel
from alfk.plotting.names import notation
from alfk.support.files import has_array, open_array, save_array


def panel(current: Round, taps: Sequence[int]) -> Panel:
    """The panel of the model that an AL iteration starts from; prints its accuracies.

    Args:
        taps: indices of the taps whose features are mapped.
    """
    work, trial = current.work, current.trial
    (model,), model_hash = current.starting_models()
    found = descriptors_of(model, work.test, taps, batch_size=work.experiment.descriptor_batch)
    predictions, truth = found.predictions.cpu(), work.test.labels.cpu()
    per_class = accuracy_per_class(predictions, truth, work.experiment.classes)
    groups = rare_groups(work.experiment.minority or (), work.experiment.hardest)
    parts = [f"{name} {np.mean([per_class[c] for c in classes]):.0f} %" for name, classes in groups.items()]
    text = ", ".join([f"{accuracy(predictions, truth):.1f} %", *parts])
    print(f"{trial.short()}: {text}", flush=True)
    name = notation(trial)
    embedding = t_sne(current, model_hash, found.vectors)
    return Panel(name, text, truth.numpy(), predictions.numpy(), embedding)


def t_sne(current: Round, model_hash: str, features: torch.Tensor) -> np.ndarray:
    """t-SNE of `features` (N, L): (N, 2), read from the run's folder if it was computed for the same model before."""
    path = current.work.folder.data(f"tsne_{current.trial.stem(current.b, current.experiment.query_size * current.b)}")
    about = {
        "kind": "t-SNE of the test images",
        **current.identity(),
        "model": model_hash,
        "features": features.shape[1],
    }
    if has_array(path):
        array, header = open_array(path, {})
        if all(header.get(key) == value for key, value in about.items()):
            return np.array(array)
    from sklearn.manifold import TSNE  # slow to import, and needed here only
    from threadpoolctl import threadpool_limits

    print(f"t-SNE of {len(features):,} test images ... ", end="", flush=True)
    start = time.perf_counter()
    seed = int(torch.randint(2**31, (1,), generator=current.generator("t-SNE")))
    with threadpool_limits(1):  # on a busy machine its threads wait for each other, and take many times as long
        embedding = TSNE(init="pca", random_state=seed).fit_transform(features.cpu().numpy())
    print(f"{time.perf_counter() - start:.0f} s")
    save_array(path, embedding, about)
    return embedding
