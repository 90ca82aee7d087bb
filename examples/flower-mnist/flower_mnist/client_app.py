"""The client: an ordinary ClientApp with one mod."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flower_mnist.task import accuracy, make_net, train
from gradwire.flower import CompressionMod

compress = CompressionMod()


def unless_none(message: Message, context: Context, call_next):
    """Leave gradwire out where the run is to be compared with plain Flower."""
    return (call_next if context.run_config["spec"] == "none" else lambda m, c: compress(m, c, call_next))(
        message, context
    )


app = ClientApp(mods=[unless_none])  # in your own app: mods=[CompressionMod()]


@app.train()
def train_app(message: Message, context: Context) -> Message:
    """Train the model that came."""
    net = make_net(context.run_config)
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    partition = int(context.node_config["partition-id"])
    server_round = int(message.content["config"]["server-round"])
    num_examples, loss = train(net, context.run_config, partition, server_round)
    metrics = MetricRecord({"num-examples": num_examples, "train_loss": loss})
    return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate_app(message: Message, context: Context) -> Message:
    """Evaluate the model that came."""
    net = make_net(context.run_config)
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    metrics = MetricRecord({"num-examples": 1, "accuracy": accuracy(net, context.run_config)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
