"""The client: an ordinary ClientApp with books round its mod."""

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from gradwire.flower import CompressionMod
from trial_app.hooks import booked
from trial_app.task import train


def mod(message: Message, context: Context, call_next):
    """What the run wants of the mod."""
    spec = context.run_config["mod"]
    if spec == "none":
        return call_next(message, context)
    return booked(CompressionMod(None if spec == "-" else spec))(message, context, call_next)


app = ClientApp(mods=[mod])


@app.train()
def train_app(message: Message, context: Context) -> Message:
    """Train the model that came."""
    model = {name: array.numpy() for name, array in message.content["arrays"].items()}
    client, index = context.node_config["partition-id"], message.content["config"]["server-round"]
    model, num_examples = train(model, client, context.run_config["num-clients"], index)
    arrays = ArrayRecord({name: Array(array) for name, array in model.items()})
    metrics = MetricRecord({"num-examples": num_examples})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
