"""The header: every one has a single spelling, and any bytes give one or a named error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradwire as gw
from gradwire.flower.header import (
    NO_INCARNATION,
    NUM_RUNS,
    PROPOSAL,
    Answer,
    Counted,
    Instruction,
    Refusal,
    Step,
    StepAnswer,
    check_conversation,
    is_step,
    read_answer,
    read_instruction,
    read_step,
    read_step_answer,
)

numbers = st.integers(0, 2**62)
eight = st.binary(min_size=8, max_size=8)


@st.composite
def runs(draw):
    gaps = draw(st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)), max_size=NUM_RUNS))
    out, after = [], 0
    for gap, length in gaps:
        out.append((after + gap, after + gap + length))
        after = out[-1][1] + 2
    return tuple(out)


@st.composite
def instructions(draw):
    full = draw(st.booleans())
    blobs = tuple(draw(st.lists(st.binary(max_size=20), max_size=1 if full else 4)))
    return Instruction(
        draw(st.from_regex(r"[a-z0-9][a-zA-Z0-9._-]{0,30}", fullmatch=True)),
        draw(eight),
        draw(st.text(max_size=50)),
        draw(st.binary(min_size=4, max_size=4)),
        draw(st.integers(0, 2**64 - 1)),
        draw(st.integers(len(blobs), 2**62)),
        full,
        draw(st.text(max_size=20)),
        draw(st.none() | st.integers(1, 2**40)),
        draw(st.none() | st.integers(1, 2**40)),
        draw(st.none() | st.builds(Counted, eight, runs())),
        blobs,
        draw(st.none() | st.binary(max_size=30)),
        draw(st.none() | numbers),
    )


answers = st.builds(
    Answer,
    eight,
    numbers,
    eight.filter(lambda b: b != NO_INCARNATION),
    numbers,
    blob=st.none() | st.binary(max_size=50),
)


names = st.from_regex(r"[a-z0-9][a-zA-Z0-9._-]{0,30}", fullmatch=True)
steps = st.builds(Step, names, eight, numbers, st.integers(2, PROPOSAL), st.binary(max_size=50), st.binary(max_size=50))
step_answers = st.builds(StepAnswer, eight, numbers, numbers, st.binary(max_size=50))


@given(steps, step_answers)
def test_steps_of_secure_sums_come_back(step, answer):
    assert read_step(step.encode()) == step
    assert is_step(step.encode())
    assert read_step_answer(answer.encode()) == answer
    assert not is_step(answer.encode())


@given(instructions())
def test_instructions_come_back(told):
    assert read_instruction(told.encode()) == told


@given(answers)
def test_answers_come_back(answer):
    assert read_answer(answer.encode()) == answer


@given(st.text(max_size=200))
def test_refusals_come_back(reason):
    assert read_instruction(Refusal(reason).encode()) == Refusal(reason)


def test_the_bytes_are_these():
    """Written by hand: magic, version, kind; then flags and fields in their order."""
    told = Instruction(
        "c", b"B" * 8, "s", b"LLLL", 300, 3, False, "n", None, 5, Counted(b"I" * 8, ((1, 2),)), (b"xy",), client=130
    )
    expected = b"GWF\x02\x01" + b"\x2c" + b"\x01c" + b"B" * 8 + b"\x01s" + b"LLLL" + b"\xac\x02" + b"\x03" + b"\x01n"
    expected += b"\x05" + b"I" * 8 + b"\x01\x01\x01" + b"\x01" + b"\x02xy" + b"\x82\x01"
    assert told.encode() == expected
    answer = Answer(b"B" * 8, 130, b"I" * 8, 3, blob=b"xy")
    step = Step("c", b"B" * 8, 9, 3, b"xy", b"abc")
    assert step.encode() == b"GWF\x02\x04" + b"\x01c" + b"B" * 8 + b"\x09" + b"\x03" + b"\x03abc" + b"xy"
    assert StepAnswer(b"B" * 8, 130, 1, b"xy").encode() == b"GWF\x02\x05" + b"B" * 8 + b"\x82\x01" + b"\x01" + b"xy"
    assert answer.encode() == b"GWF\x02\x02" + b"\x02" + b"B" * 8 + b"\x82\x01" + b"I" * 8 + b"\x03" + b"xy"


@given(st.binary(max_size=80), instructions(), answers, steps, step_answers, st.data())
def test_reading_is_total_and_strict(junk, told, answer, step, step_answer, data):
    for read, good in (
        (read_instruction, told.encode()),
        (read_answer, answer.encode()),
        (read_step, step.encode()),
        (read_step_answer, step_answer.encode()),
    ):
        position = data.draw(st.integers(0, len(good) - 1))
        changed = bytearray(good)
        changed[position] ^= data.draw(st.integers(1, 255))
        for bad in (junk, good[:position], bytes(changed), good + junk, b"GWF\x02\x01" + junk, b"GWF\x02\x02" + junk):
            try:
                found = read(bad)
            except gw.DecodeError:
                continue
            assert found.encode() == bad  # whatever can be read is spelled so


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        (b"", gw.Truncated, "magic"),
        (b"XXXXXXX", gw.Malformed, "no header"),
        (b"GWF\x01\x01", gw.UnsupportedVersion, "install the same gradwire at both ends"),
        (b"GWF\x02\x02", gw.Malformed, "kind"),
    ],
)
def test_errors_say_what(data, error, said):
    with pytest.raises(error, match=said):
        read_instruction(data)


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "a\\b", "a b", "ä", "x" * 101, "a\n", None])
def test_names_are_fit_for_files(name):
    with pytest.raises(gw.ConfigError, match="conversation"):
        check_conversation(name)
    if isinstance(name, str):
        told = Instruction(name, bytes(8), "s", bytes(4), 0, 0, True, "n")
        with pytest.raises(gw.Malformed, match="conversation"):
            read_instruction(told.encode())
