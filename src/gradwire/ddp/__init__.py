"""DDP: the same compressors between the workers of torch's DistributedDataParallel, over links that are slow.

``register(ddp_model, compressor)`` is all a training script needs; ``LocalSGD`` exchanges only every so many steps.
Importing this package needs torch, which importing gradwire does not.
"""

import gradwire.ddp.installed  # noqa: F401  first of all: it refuses a torch that is missing or cannot talk to others
from gradwire.ddp.hook import CommState, hook
from gradwire.ddp.local_sgd import LocalSGD
from gradwire.ddp.registering import register

__all__ = ["CommState", "LocalSGD", "hook", "register"]
