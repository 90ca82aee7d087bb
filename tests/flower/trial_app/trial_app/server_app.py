"""The server: FedAvg, wrapped, with books."""

import hashlib
import logging

from flwr.app import Array, ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from gradwire.flower import CompressedStrategy
from trial_app.hooks import books
from trial_app.task import accuracy, make_model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds."""
    config = context.run_config
    strategy = FedAvg(
        min_train_nodes=config["num-clients"], min_available_nodes=config["num-clients"], fraction_evaluate=0.0
    )
    if config["wrapped"]:
        named = {name: config[name.replace("_", "-")] for name in ("out", "state_file")}
        given = {name: value for name, value in named.items() if value != "-"}
        strategy = CompressedStrategy(strategy, config["spec"], conversation=config["conversation"], **given)

    def evaluate(_: int, arrays: ArrayRecord) -> MetricRecord:
        model = {name: array.numpy() for name, array in arrays.items()}
        digest = hashlib.sha256(b"".join(array.tobytes() for array in model.values())).hexdigest()
        logging.getLogger("flwr").info("model %s, accuracy %.4f", digest[:12], accuracy(model))
        return MetricRecord({"accuracy": accuracy(model)})

    with books():
        strategy.start(
            grid,
            ArrayRecord({name: Array(array) for name, array in make_model().items()}),
            num_rounds=config["num-server-rounds"],
            timeout=config["timeout"],
            evaluate_fn=evaluate,
        )
