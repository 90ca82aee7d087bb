"""The federated system: tasks, partitions, local training, simulation."""
