"""Secure aggregation over Flower: the server learns the mean of the clients' updates, and of none its part.

The ClientApp gets ``SecureMod`` in the place of ``CompressionMod``, the ServerApp's strategy is wrapped in
``SecureStrategy``; both are given the same ``Terms``. docs/security.md says what that hides and what not.
Importing this package needs what ``gradwire.secagg`` does.
"""

from gradwire.flower.secure.mod import SecureMod
from gradwire.flower.secure.strategy import SecureStrategy
from gradwire.secagg.terms import Terms

__all__ = ["SecureMod", "SecureStrategy", "Terms"]
