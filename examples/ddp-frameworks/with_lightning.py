"""Lightning: a callback has gradients travel compressed, on any device.

pip install 'gradwire[torch]' pytorch-lightning
python with_lightning.py
"""

import pytorch_lightning as lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradwire.ddp import register


class Compressed(lightning.Callback):
    """Gradients compressed from the first step on, whatever the device."""

    def __init__(self, spec: str) -> None:
        self.spec, self.comm = spec, None

    def on_train_start(self, trainer, module):
        """Register with the model that Lightning wrapped."""
        # without fallback=False gradients as small as these are soon sent whole, which is faster
        self.comm = register(trainer.strategy.model, self.spec, fallback=False)

    def on_train_end(self, trainer, module):
        """Give threads and sockets back."""
        self.comm.close()


class Classifier(lightning.LightningModule):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def training_step(self, batch, index):
        """Return a batch's loss."""
        inputs, targets = batch
        return nn.functional.cross_entropy(self.net(inputs), targets)

    def configure_optimizers(self):
        """Return plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def main() -> None:
    """Train with two workers on the CPU."""
    lightning.seed_everything(0)
    inputs = torch.randn(512, 64)
    data = DataLoader(TensorDataset(inputs, inputs[:, :10].argmax(1)), batch_size=16)
    compressed = Compressed("ef(topk(0.01) | fractional(16))")
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=2,
        callbacks=[compressed],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Classifier()
    trainer.fit(model, data)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    told = f"worker {trainer.global_rank}: {compressed.comm.step} steps, {compressed.comm.bytes_sent} bytes"
    print(f"{told}, parameters sum to {flat.double().sum():.12f}\n", end="", flush=True)


if __name__ == "__main__":
    main()
