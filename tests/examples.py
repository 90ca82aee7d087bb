"""How many examples hypothesis draws."""

from hypothesis import settings


def up_to(number: int) -> int:
    """So many, or half of them in ``make test``, whose profile is "ci"; ``make test-all`` draws them all."""
    return number // 2 if settings.get_current_profile_name() == "ci" else number
