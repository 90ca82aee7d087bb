"""What is trained on, and how: tasks, models, partitions, local training."""
