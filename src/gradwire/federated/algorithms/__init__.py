"""Federated algorithms, one family a file, with their steps and control variates."""
