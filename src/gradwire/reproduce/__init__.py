"""The papers' experiments: what is run, how far it got, and the paper's figures beside ours."""
