"""gradwire: model updates in the fewest bytes that train as well."""

__version__ = "0.1.0.dev0"
