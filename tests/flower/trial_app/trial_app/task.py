"""Data and model: clusters of ten kinds, and a perceptron that tells them apart; the same numbers on any thread."""

from itertools import pairwise

import numpy as np

NUM_IMAGES, NUM_INPUTS, NUM_HIDDEN, NUM_CLASSES = 1440, 64, 128, 10
BATCH, RATE = 32, 0.1

Model = dict[str, np.ndarray]


def images() -> tuple[np.ndarray, np.ndarray]:
    """Every client's images, and what they show."""
    rng = np.random.default_rng(5)
    targets = rng.integers(NUM_CLASSES, size=NUM_IMAGES)
    centres = rng.standard_normal((NUM_CLASSES, NUM_INPUTS))
    return (centres[targets] + rng.standard_normal((NUM_IMAGES, NUM_INPUTS))).astype(np.float32), targets


def make_model() -> Model:
    """The model before the first round."""
    rng = np.random.default_rng(6)
    sizes = (NUM_INPUTS, NUM_HIDDEN, NUM_CLASSES)
    model = {}
    for i, (rows, columns) in enumerate(pairwise(sizes)):
        model[f"{i}.weight"] = (rng.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32)
        model[f"{i}.bias"] = np.zeros(columns, np.float32)
    return model


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b, by loops that no number of threads changes."""
    return np.einsum("ij,jk->ik", a, b)


def forward(model: Model, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hidden values, and the chance of each class."""
    hidden = np.maximum(product(inputs, model["0.weight"]) + model["0.bias"], 0)
    scores = product(hidden, model["1.weight"]) + model["1.bias"]
    scores = np.exp(scores - scores.max(1, keepdims=True))
    return hidden, scores / scores.sum(1, keepdims=True)


def train(model: Model, client: int, num_clients: int, index: int) -> tuple[Model, int]:
    """One epoch over a client's images: the model it comes to, and their number."""
    inputs, targets = (array[client::num_clients] for array in images())
    model = {name: array.copy() for name, array in model.items()}
    order = np.random.default_rng([index, client]).permutation(len(inputs))
    for batch in np.array_split(order, range(BATCH, len(order), BATCH)):
        hidden, error = forward(model, inputs[batch])
        error[np.arange(len(batch)), targets[batch]] -= 1
        error /= np.float32(len(batch))
        back = product(error, model["1.weight"].T) * (hidden > 0)
        for i, (given, wrong) in enumerate(((inputs[batch], back), (hidden, error))):
            model[f"{i}.weight"] -= np.float32(RATE) * product(given.T, wrong)
            model[f"{i}.bias"] -= np.float32(RATE) * wrong.sum(0)
    return model, len(inputs)


def accuracy(model: Model) -> float:
    """The share of all images that it knows."""
    inputs, targets = images()
    return float(np.mean(forward(model, inputs)[1].argmax(1) == targets))
