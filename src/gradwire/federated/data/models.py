"""The models the simulator trains, deterministic from a seed; all run under ``torch.vmap``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gradwire.errors import BackendUnavailable, ConfigError, nearest

try:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional
except ImportError as error:
    raise BackendUnavailable(f"models need torch, got {error}: pip install 'gradwire[sim]'") from error

if TYPE_CHECKING:
    from gradwire.federated.data.task import Task

__all__ = ["MODEL_NAMES", "accuracy", "build_model", "cross_entropies", "cross_entropy", "loss_and_metric"]


def build_model(name: str, task: Task, seed: int) -> nn.Module:
    """Build the model called ``name`` for a task's inputs and classes.

    The parameters depend on the name, the task's shapes and the seed alone; the global generators keep their
    state.

    Args:
        name: one of ``MODEL_NAMES``: mlp (one hidden layer), cnn (MNIST: two convolutions, else three with
            GroupNorm), small_cnn (three strided convolutions with GroupNorm), resnet18 (the CIFAR variant: 3 x 3 stem,
            no max-pool, BatchNorm), char_transformer (two causal layers).
        task: only the shape and dtype of its inputs and its number of classes are used.
        seed: 0 <= seed < 2**63.

    Returns:
        A float32 model on the CPU in training mode: inputs (n, ...) -> logits (n, num_classes), or (n, 64,
        num_classes).

    Raises:
        ConfigError: the name or seed is not valid, or the model does not take such inputs.

    Example:
        >>> from gradwire.federated.data.tasks import load_task
        >>> sum(p.numel() for p in build_model("mlp", load_task("digits"), seed=0).parameters())
        9610

    Source: mlp: arXiv:1602.05629 section 3 (its 2NN, smaller); resnet18: arXiv:1512.03385, section 4.2's stem
    with 1 x 1 convolutions on the shortcuts; char_transformer: arXiv:1706.03762, decoder only.

    Deviations: char_transformer normalises before each block and learns its positions.
    """
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed must be in [0, 2**63), got {seed}")
    if task.build is not None:
        if name != task.default_model:
            raise ConfigError(f"model is for the tasks that come with gradwire, {task.name} has its own; got {name!r}")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(seed))
            return task.build()
    if name not in _BUILDERS:
        raise ConfigError(f"model must be one of {', '.join(MODEL_NAMES)}, got {name!r}{nearest(name, MODEL_NAMES)}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(seed))
        return _BUILDERS[name](task)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy over all examples and positions.

    Args:
        logits: (..., num_classes) float.
        targets: (...) int64 labels.

    Returns:
        A scalar, in nats; it carries gradients.

    Example:
        >>> round(float(cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3]))), 4)
        1.3863

    Source: none.

    Deviations: none.
    """
    return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


def cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of each of several clients.

    Args:
        logits: (n, ..., num_classes) float.
        targets: (n, ...) int64 labels.

    Returns:
        (n,) of the logits' dtype, in nats; it carries gradients.

    Example:
        >>> [round(float(x), 4) for x in cross_entropies(torch.zeros(3, 2, 4), torch.tensor([[0, 3]] * 3))]
        [1.3863, 1.3863, 1.3863]

    Source: none.

    Deviations: none.
    """
    each = functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), reduction="none")
    return each.reshape(len(targets), -1).mean(1)


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the share of examples and positions whose largest logit is the target's.

    Args:
        logits: (..., num_classes) float.
        targets: (...) int64 labels.

    Returns:
        A float32 scalar in [0, 1].

    Example:
        >>> float(accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0])))
        0.75

    Source: none.

    Deviations: none.
    """
    return (logits.argmax(-1) == targets).to(torch.float32).mean()


def loss_and_metric(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``cross_entropy`` and ``accuracy`` of one batch: the loss and metric of every task.

    Args:
        logits: (..., num_classes) float.
        targets: (...) int64 labels.

    Returns:
        Two scalars: the loss, in nats, and the accuracy in [0, 1].

    Example:
        >>> loss, metric = loss_and_metric(torch.zeros(1, 2), torch.tensor([0]))
        >>> round(float(loss), 4), float(metric)
        (0.6931, 1.0)

    Source: none.

    Deviations: none.
    """
    return cross_entropy(logits, targets), accuracy(logits, targets)


def _image_shape(name: str, task: Task) -> tuple[int, int, int]:
    shape = tuple(task.train_inputs.shape[1:])
    if len(shape) != 3:
        raise ConfigError(
            f"{name} takes images (n, channels, height, width), got {task.name} with inputs (n, *{shape})"
        )
    return shape[0], shape[1], shape[2]


def _mlp(task: Task) -> nn.Module:
    if not task.train_inputs.is_floating_point():
        raise ConfigError(f"mlp takes float inputs, got {task.name} with {task.train_inputs.dtype}")
    num_inputs = task.train_inputs[:1].numel()
    num_hidden = 128 if num_inputs <= 64 else 64
    return nn.Sequential(
        nn.Flatten(), nn.Linear(num_inputs, num_hidden), nn.ReLU(), nn.Linear(num_hidden, task.num_classes)
    )


def _cnn(task: Task) -> nn.Module:
    channels, height, width = _image_shape("cnn", task)
    widths, num_hidden = ((16, 32), 64) if channels == 1 else ((32, 64, 128), 128)
    stages: list[nn.Module] = []
    before = channels
    for after in widths:
        stages.append(nn.Conv2d(before, after, 3, padding=1))
        if channels > 1:
            stages.append(nn.GroupNorm(8, after))
        stages += [nn.MaxPool2d(2), nn.ReLU()]  # the largest first: the same bits, and a quarter of them to cut
        before = after
    num_features = before * (height >> len(widths)) * (width >> len(widths))
    if not num_features:
        raise ConfigError(f"cnn takes images of {1 << len(widths)} pixels a side or more, got {height} x {width}")
    stages += [
        nn.Flatten(),
        nn.Linear(num_features, num_hidden),
        nn.ReLU(),
        nn.Linear(num_hidden, task.num_classes),
    ]
    model = nn.Sequential(*stages)
    if channels == 1:  # on a CPU pools are ten times as fast so; torch.vmap knows no GroupNorm of such
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def _small_cnn(task: Task) -> nn.Module:
    channels, height, width = _image_shape("small_cnn", task)
    stages: list[nn.Module] = []
    before = channels
    for after in (32, 64, 64):
        stages += [nn.Conv2d(before, after, 3, 2, padding=1), nn.GroupNorm(8, after), nn.ReLU()]
        before = after
    num_features = before * -(-height // 8) * -(-width // 8)
    stages += [nn.Flatten(), nn.Linear(num_features, 64), nn.ReLU(), nn.Linear(64, task.num_classes)]
    return nn.Sequential(*stages)


class _ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = functional.relu(self.norm1(self.conv1(inputs)))
        return functional.relu(self.norm2(self.conv2(hidden)) + self.shortcut(inputs))


def _resnet18(task: Task) -> nn.Module:
    channels, _, _ = _image_shape("resnet18", task)
    stages: list[nn.Module] = [
        nn.Conv2d(channels, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
    ]
    for before, after, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)):
        stages += [_ResidualBlock(before, after, stride), _ResidualBlock(after, after, 1)]
    stages += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, task.num_classes)]
    return nn.Sequential(*stages)


class _CausalLayer(nn.Module):
    """Causal self-attention, then a two-layer network, each normalised before and added to its input."""

    causal: Tensor

    def __init__(self, num_features: int, num_heads: int, num_positions: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(num_features)
        self.queries_keys_values = nn.Linear(num_features, 3 * num_features)
        self.output = nn.Linear(num_features, num_features)
        self.norm2 = nn.LayerNorm(num_features)
        self.feed_forward = nn.Sequential(
            nn.Linear(num_features, 4 * num_features), nn.GELU(), nn.Linear(4 * num_features, num_features)
        )
        mask = torch.full((num_positions, num_positions), float("-inf")).triu(1)
        self.register_buffer("causal", mask, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        num_rows, length, num_features = inputs.shape
        heads = self.queries_keys_values(self.norm1(inputs))
        heads = heads.reshape(num_rows, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        queries, keys, values = heads[0], heads[1], heads[2]
        scores = queries @ keys.transpose(-1, -2) * (num_features / self.num_heads) ** -0.5
        mixed = torch.softmax(scores + self.causal[:length, :length], -1) @ values
        hidden = inputs + self.output(mixed.transpose(1, 2).reshape(num_rows, length, num_features))
        result: Tensor = hidden + self.feed_forward(self.norm2(hidden))
        return result


class _CharTransformer(nn.Module):
    """Predict each next character from those before it."""

    def __init__(
        self, num_characters: int, num_positions: int, num_features: int, num_heads: int, num_layers: int
    ) -> None:
        super().__init__()
        self.characters = nn.Embedding(num_characters, num_features)
        self.positions = nn.Parameter(0.02 * torch.randn(num_positions, num_features))
        layers = [_CausalLayer(num_features, num_heads, num_positions) for _ in range(num_layers)]
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(num_features)
        self.logits = nn.Linear(num_features, num_characters)
        nn.init.normal_(self.characters.weight, std=0.02)

    def forward(self, contexts: Tensor) -> Tensor:
        hidden = self.characters(contexts) + self.positions[: contexts.shape[-1]]
        logits: Tensor = self.logits(self.norm(self.layers(hidden)))
        return logits


def _char_transformer(task: Task) -> nn.Module:
    inputs = task.train_inputs
    if inputs.is_floating_point() or inputs.ndim != 2:
        raise ConfigError(
            f"char_transformer takes characters (n, length) int64, got {task.name} with inputs "
            f"(n, *{tuple(inputs.shape[1:])}) {inputs.dtype}"
        )
    return _CharTransformer(task.num_classes, inputs.shape[1], num_features=64, num_heads=4, num_layers=2)


_BUILDERS: dict[str, Callable[[Task], nn.Module]] = {
    "mlp": _mlp,
    "cnn": _cnn,
    "small_cnn": _small_cnn,
    "resnet18": _resnet18,
    "char_transformer": _char_transformer,
}
MODEL_NAMES = tuple(_BUILDERS)
