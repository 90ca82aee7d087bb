"""Five thousand damaged and forged containers; attacks/fuzz.py tries a million of the same."""

from __future__ import annotations

import random

import fuzz
import pytest

import gradwire as gw


@pytest.mark.parametrize(("seed", "cases"), [(0, 2_500), pytest.param(1, 10_000, marks=pytest.mark.slow)])
def test_only_payloads_and_decode_errors_come_out(seed, cases):
    found = fuzz.fuzz(cases, seed, memory_every=25)
    assert not found["failures"], found["failures"][:3]
    assert found["cases"] == cases
    assert found["outcomes"]["Payload"] > 250, "the fuzzer gets through"
    errors = {"Malformed", "Truncated", "LimitExceeded", "UnknownCodec", "BadChecksum", "UnsupportedVersion"}
    assert errors <= set(found["outcomes"]), "and reaches every error"
    assert found["outcomes"]["Payload beside the reference"] > 25
    assert found["outcomes"]["Malformed beside the reference"] > 2
    assert found["peak_memory_factor"] <= 1


@pytest.mark.parametrize(
    "error",
    [
        KeyError,
        *(pytest.param(e, marks=pytest.mark.slow) for e in (gw.StaleReference, gw.ProtocolError, gw.ConfigError)),
    ],
)
def test_any_other_error_of_decompress_is_a_failure(error, monkeypatch):
    def failing(payload, reference=None):
        raise error("no")

    fuzz.fuzz(1)  # what is done once a process needs decompress as it is
    honest = fuzz.honest_times(fuzz.honest_blobs())
    monkeypatch.setattr(fuzz, "honest_times", lambda blobs: honest)
    monkeypatch.setattr(gw, "decompress", failing)
    found = fuzz.fuzz(200)
    assert found["num_failures"] > 0
    assert any(failure["error"].startswith(error.__name__) for failure in found["failures"])


def test_a_decode_error_of_decompress_is_one_only_beside_a_reference(monkeypatch):
    def failing(payload, reference=None):
        assert (reference is None) == (payload.reference_digest is None)
        raise gw.Malformed("no")

    blobs = [blob for blob in fuzz.honest_blobs() if gw.decode(blob).reference_digest is None]
    leaning = [blob for blob in fuzz.honest_blobs() if gw.decode(blob).reference_digest is not None]
    monkeypatch.setattr(gw, "decompress", failing)
    assert fuzz.use(leaning[0]) == "Malformed beside the reference"
    with pytest.raises(AssertionError, match="what decodes decompresses"):
        fuzz.use(blobs[0])


def test_cases_are_the_same_every_time():
    blobs = fuzz.honest_blobs()
    first, second = random.Random(5), random.Random(5)
    assert [fuzz.mutate(blobs, first) for _ in range(300)] == [fuzz.mutate(blobs, second) for _ in range(300)]


def test_limits_are_respected_in_all_their_sizes():
    """The smaller the limits, the more is refused, and what is refused never becomes a payload."""
    blobs = fuzz.honest_blobs()
    rng = random.Random(9)
    sizes = (1, 2, 5, 50, 1000, 2**20)
    for _ in range(400):
        blob = fuzz.mutate(blobs, rng)
        accepted = False
        for size in sizes:
            limits = gw.Limits(max_parameters=size, max_parts=size, max_bytes=8 * size, max_expansion=size)
            try:
                payload = gw.decode(blob, limits)
            except gw.DecodeError:
                assert not accepted, "larger limits accept whatever smaller ones do"
            else:
                accepted = True
                assert payload.d <= size
                assert len(payload.parts) <= size
                assert len(blob) <= 8 * size
                assert all(part.support.num_kept <= size * len(blob) for part in payload.parts)
