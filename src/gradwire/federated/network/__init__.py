"""What lies between the ends: links, traces, the packet channel, bytes counted, budgets."""
