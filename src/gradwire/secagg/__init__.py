"""Secure aggregation: the server learns the sum of what clients send on a support they share, and of none its part.

``SecureClient`` and ``SecureServer`` take messages in and give messages out, as ``gw.Client`` and ``gw.Server`` do;
docs/security.md says what they hide and what not, docs/format.md what the messages look like.
Importing this package needs cryptography and pycryptodome, which importing gradwire does not.
"""

import gradwire.secagg.installed  # noqa: F401  first of all: it refuses to go on without them
from gradwire.secagg.client import SecureClient
from gradwire.secagg.graph import Chances, chances, least_neighbours
from gradwire.secagg.groups import SecureGroups, deal
from gradwire.secagg.server import SecureServer, SecureSum
from gradwire.secagg.terms import Terms
from gradwire.secagg.votes import VOTES, cast_votes, elected, votes_layout

__all__ = [
    "VOTES",
    "Chances",
    "SecureClient",
    "SecureGroups",
    "SecureServer",
    "SecureSum",
    "Terms",
    "cast_votes",
    "chances",
    "deal",
    "elected",
    "least_neighbours",
    "votes_layout",
]
