"""The server: FedAvg, wrapped."""

import hashlib
import logging

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from flower_mnist.task import accuracy, make_net
from gradwire.flower import CompressedStrategy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds."""
    config = context.run_config
    net = make_net(config)
    num_clients = int(config["num-clients"])
    strategy = FedAvg(min_train_nodes=num_clients, min_available_nodes=num_clients, fraction_evaluate=0.0)
    if config["spec"] != "none":
        strategy = CompressedStrategy(
            strategy,
            str(config["spec"]),
            seed=int(config["seed"]),
            conversation=None if config["conversation"] == "-" else str(config["conversation"]),
            out=None if config["out"] == "-" else str(config["out"]),
            state_file=None if config["state-file"] == "-" else str(config["state-file"]),
        )

    def evaluate(_: int, arrays: ArrayRecord) -> MetricRecord:
        net.load_state_dict(arrays.to_torch_state_dict())
        digest = hashlib.sha256(b"".join(array.numpy().tobytes() for array in arrays.values())).hexdigest()
        measured = accuracy(net, config)
        logging.getLogger("flwr").info("model %s, accuracy %.4f", digest[:12], measured)
        return MetricRecord({"accuracy": measured})

    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(net.state_dict()),
        num_rounds=int(config["num-server-rounds"]),
        timeout=float(config["timeout"]),
        evaluate_fn=evaluate,
    )
