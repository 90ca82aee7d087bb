"""The two ends of a conversation, without input or output: client, server, region, and the inbox they share."""
