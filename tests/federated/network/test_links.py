"""Connections against closed forms and a stepping clock, the text of links, and trace files."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import up_to
from gradwire.errors import ConfigError
from gradwire.federated.network.links import Links, Profile, ideal, link, mix, parse_links, trace
from gradwire.federated.network.traces import UNLIMITED_BYTES, Conditions, Connection, ListedSessions, read_trace
from gradwire.rng import Key

HEADER = "client,seconds,uplink_bits_per_second,downlink_bits_per_second,latency_seconds,steps_per_second,available"


# --- transfers and computation --------------------------------------------------------------------


def steady(rate=8000.0, latency=0.25, steps=10.0):
    return Connection((Conditions(0, rate, 3 * rate, latency, steps),))


def test_closed_forms_at_constant_rates():
    line = steady()
    assert line.sent(3000, 2.0) == pytest.approx(2 + 3000 * 8 / 8000)
    assert line.uploaded(3000, 2.0) == pytest.approx(2 + 3000 * 8 / 8000 + 0.25)
    assert line.downloaded(3000, 2.0) == pytest.approx(2 + 3000 * 8 / 24000 + 0.25)
    assert line.computed(15, 2.0) == pytest.approx(3.5)
    assert line.upload_budget(1.25, 7.0) == 1000
    assert line.upload_budget(0.25) == line.upload_budget(0.2) == line.upload_budget(0.0) == 0


def test_nothing_takes_no_time():
    dead = Connection((Conditions(0, 0, 0, 1.0, 0),))
    for line in (steady(), dead):
        assert line.uploaded(0, 4.0) == line.sent(0, 4.0) == line.downloaded(0, 4.0) == line.computed(0, 4.0) == 4.0


def test_rate_0_for_ever_never_ends():
    dying = Connection((Conditions(0, 800, 800, 0.5, 2), Conditions(10, 0, 0, 0.5, 0)))
    assert dying.uploaded(1000, 0.0) == pytest.approx(10.5)
    assert dying.uploaded(1001, 0.0) == dying.downloaded(1001, 0.0) == dying.uploaded(1, 10.0) == math.inf
    assert dying.computed(20, 0.0) == pytest.approx(10.0)
    assert dying.computed(21, 0.0) == math.inf
    assert dying.upload_budget(math.inf) == 1000
    assert steady().upload_budget(math.inf) == UNLIMITED_BYTES
    assert dying.uploaded(5, math.inf) == math.inf


def test_ideal_stands_still():
    [line] = ideal().assign(1, seed=0)
    assert line.uploaded(10**12, 3.0) == line.downloaded(10**12, 3.0) == line.computed(10**9, 3.0) == 3.0
    assert line.upload_budget(0.0) == UNLIMITED_BYTES
    assert line.available(1e9)
    assert line.leaves(1e9) == math.inf


def test_pieces_by_hand():
    line = Connection(
        (
            Conditions(0, 800, 8, 0.1, 1),
            Conditions(10, 0, 8, 0.2, 0),
            Conditions(20, 1600, 8, 0.3, 4),
        )
    )
    # 500 bytes by second 10, nothing up to 20, the other 600 at 200 a second
    assert line.uploaded(1100, 5.0) == pytest.approx(20 + 3 + 0.3)
    assert line.uploaded(500, 5.0) == pytest.approx(10.1)
    assert line.uploaded(100, 12.0) == pytest.approx(20.5 + 0.3)
    assert line.computed(14, 0.0) == pytest.approx(21.0)
    assert line.downloaded(25, 0.0) == pytest.approx(25.3)
    assert line.at(9.999).latency_seconds == 0.1
    assert line.at(10.0).uplink_bits_per_second == 0


def test_no_byte_overtakes_an_earlier_one():
    # what leaves just before second 10 takes 5 s more, what leaves after it 0.1 s
    line = Connection((Conditions(0, 800, 800, 5.0, 1), Conditions(10, 800, 800, 0.1, 1)))
    assert line.uploaded(1000, 0.0) == pytest.approx(15.0)
    assert line.uploaded(1100, 0.0) == pytest.approx(15.0)
    assert line.uploaded(1600, 0.0) == pytest.approx(16.1)
    assert line.uploaded(100, 10.0) == pytest.approx(11.1)


rates = st.one_of(st.just(0.0), st.floats(1.0, 1e9))


@st.composite
def connections(draw):
    gaps = draw(st.lists(st.floats(0.01, 100.0), max_size=5))
    times = np.cumsum([0.0, *gaps]).tolist()
    return Connection(
        tuple(Conditions(at, draw(rates), draw(rates), draw(st.floats(0, 10)), draw(st.floats(0, 100))) for at in times)
    )


@settings(deadline=None, max_examples=up_to(200))
@given(line=connections(), seconds=st.floats(0, 1e4), start=st.floats(0, 300))
def test_budget_is_the_inverse_of_uploaded(line, seconds, start):
    budget = line.upload_budget(seconds, start)
    assert line.uploaded(budget, start) <= start + seconds < line.uploaded(budget + 1, start)


@settings(deadline=None, max_examples=up_to(100))
@given(line=connections(), sizes=st.lists(st.integers(0, 10**9), min_size=2, max_size=6), start=st.floats(0, 300))
def test_more_bytes_never_arrive_earlier(line, sizes, start):
    ends = [line.uploaded(size, start) for size in sorted(sizes)]
    assert ends == sorted(ends)
    assert all(line.sent(size, start) <= line.uploaded(size, start) for size in sizes)


@pytest.mark.parametrize("seed", range(4))
def test_integration_against_a_millisecond_clock(seed):
    generator = np.random.default_rng(seed)
    times = np.cumsum([0, *generator.integers(500, 2000, 5)]) / 1000
    bits = generator.integers(0, 4, 6) * 8000.0
    bits[-1] = 8000.0
    line = Connection(tuple(Conditions(t, b, 1, 0.0, 1) for t, b in zip(times.tolist(), bits.tolist(), strict=True)))
    start, num_bytes = 0.3, 6000
    clock, moved = round(start * 1000), 0.0
    while moved < num_bytes:
        moved += line.at(clock / 1000).uplink_bits_per_second / 8 / 1000
        clock += 1
    assert line.uploaded(num_bytes, start) == pytest.approx(clock / 1000, abs=2e-3)


def test_refusals_of_connections():
    good = Conditions(0, 1, 1, 0, 1)
    with pytest.raises(ConfigError, match="conditions must start at 0 seconds"):
        Connection(())
    with pytest.raises(ConfigError, match="conditions must start at 0 seconds"):
        Connection((Conditions(1, 1, 1, 0, 1),))
    with pytest.raises(ConfigError, match=r"conditions must ascend, got 0 after 0 seconds"):
        Connection((good, good))
    with pytest.raises(ConfigError, match=r"uplink_bits_per_second must be >= 0, got -1"):
        Conditions(0, -1, 1, 0, 1)
    with pytest.raises(ConfigError, match=r"steps_per_second must be finite, got nan"):
        Conditions(0, 1, 1, 0, math.nan)
    with pytest.raises(ConfigError, match=r"latency_seconds must be finite, got inf"):
        Conditions(0, 1, 1, math.inf, 1)
    line = Connection((good,))
    with pytest.raises(ConfigError, match=r"num_bytes must be an integer of 0 or more, got -1"):
        line.uploaded(-1, 0.0)
    with pytest.raises(ConfigError, match=r"num_steps must be an integer of 0 or more, got 1.5"):
        line.computed(1.5, 0.0)
    with pytest.raises(ConfigError, match=r"start must be >= 0, got -1"):
        line.uploaded(1, -1)
    with pytest.raises(ConfigError, match=r"seconds must be >= 0, got -2"):
        line.upload_budget(-2)
    with pytest.raises(ConfigError, match=r"at must be finite, got inf"):
        line.leaves(math.inf)


# --- sessions -------------------------------------------------------------------------------------


def test_listed_sessions():
    line = Connection((Conditions(0, 1, 1, 0, 1),), ListedSessions(False, (5.0, 8.0, 12.0)))
    assert [line.available(at) for at in (0, 5, 7.9, 8, 12, 1e9)] == [False, True, True, False, True, True]
    assert [line.next_available(at) for at in (0, 6, 8)] == [5, 6, 12]
    assert [line.leaves(at) for at in (0, 5, 9, 12)] == [0, 8, 9, math.inf]
    gone = Connection(line.conditions, ListedSessions(True, (3.0,)))
    assert gone.next_available(3) == math.inf
    assert gone.leaves(1) == 3


def drawn(availability, mean, client=0, seed=0):
    key = Key(seed, client=client, purpose="sessions")
    return link(1e6, 1e6, 0.0, 1.0, availability, mean).connection(key)


@pytest.mark.parametrize("availability", [0.2, 0.5, 0.9])
def test_share_of_the_time_there_and_mean_session(availability):
    line, there, sessions, at = drawn(availability, 30.0), 0.0, [], 0.0
    horizon = 20_000 * 30.0 / availability
    while at < horizon:
        begin = line.next_available(at)
        end = line.leaves(begin)
        there += min(end, horizon) - min(begin, horizon)
        sessions.append(end - begin)
        at = end
    cycles = len(sessions)
    # the share's standard deviation is sqrt(2 / cycles) a (1 - a) for exponential stretches
    assert there / horizon == pytest.approx(availability, abs=5 * math.sqrt(2 / cycles) * availability)
    assert np.mean(sessions) == pytest.approx(30.0, rel=5 / math.sqrt(cycles))
    assert np.std(sessions) == pytest.approx(30.0, rel=0.05)  # exponential: as much as the mean


def test_availability_holds_at_every_time_over_clients():
    for at in (0.0, 10.0, 10_000.0):
        there = sum(drawn(0.3, 60.0, client).available(at) for client in range(2000))
        assert there / 2000 == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / 2000))


def test_sessions_do_not_depend_on_what_was_asked_before():
    one, two = drawn(0.5, 10.0), drawn(0.5, 10.0)
    times = np.linspace(0, 30_000, 400).tolist()
    forward = [(one.available(at), one.leaves(at), one.next_available(at)) for at in times]
    backward = [(two.available(at), two.leaves(at), two.next_available(at)) for at in reversed(times)]
    assert forward == backward[::-1]
    assert one == two
    assert hash(one) == hash(two)
    other = drawn(0.5, 10.0, client=1)
    assert other != one
    assert [other.leaves(at) for at in times] != [leaves for _, leaves, _ in forward]


def test_availability_1_is_always_there():
    line = drawn(1.0, 60.0)
    assert line.leaves(1e12) == math.inf
    assert line.next_available(5.0) == 5.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"uplink_bits_per_second": 0}, r"uplink_bits_per_second must be > 0, got 0"),
        ({"steps_per_second": -1}, r"steps_per_second must be >= 0, got -1"),
        ({"latency_seconds": -0.1}, r"latency_seconds must be >= 0, got -0.1"),
        ({"availability": 0}, r"availability must be in \(0, 1\], got 0"),
        ({"availability": 1.5}, r"availability must be in \(0, 1\], got 1.5"),
        ({"mean_session_seconds": 0}, r"mean_session_seconds must be > 0, got 0"),
        ({"mean_session_seconds": math.inf}, r"mean_session_seconds must be finite, got inf"),
    ],
)
def test_bad_profiles(change, message):
    fine = {"uplink_bits_per_second": 1.0, "downlink_bits_per_second": 1.0, "latency_seconds": 0.0}
    fine |= {"steps_per_second": 1.0, "availability": 0.5, "mean_session_seconds": 60.0}
    link(**fine)
    with pytest.raises(ConfigError, match=message):
        link(**(fine | change))


# --- the text -------------------------------------------------------------------------------------

PROFILES = {name: cls() for name, cls in Links.registry.items() if issubclass(cls, Profile) and cls is not link}


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        *((f"{name}()", f"{name}()") for name in PROFILES),
        ("lora(availability=0.25)", "lora(availability=0.25)"),
        ("lora(uplink_bits_per_second=5000)", "lora()"),
        ("mix(fibre=0.2, lte=0.5, satellite=0.2, lora=0.1)", "mix(fibre=0.2, lte=0.5, satellite=0.2, lora=0.1)"),
        ("mix(lora=3.0, cable=1e-05)", "mix(lora=3, cable=1e-05)"),
        ("mix(fibre=1e308)", "mix(fibre=1e+308)"),
        ("link(33600, 56e3, 0.1, 5)", "link(33600.0, 56000.0, 0.1, 5.0)"),
        ("link(1e309, 1e309, 0, 1e309)", "link(1e309, 1e309, 0.0, 1e309)"),
        ("trace('some/where, a:b.csv')", "trace('some/where, a:b.csv')"),
    ],
)
def test_text_both_ways(text, canonical):
    parsed = parse_links(text)
    assert str(parsed) == repr(parsed) == canonical
    assert parse_links(canonical) == parsed
    assert hash(parse_links(canonical)) == hash(parsed)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora", r"'lora' is not a link call; write lora\(...\)"),
        ("fiber()", r"unknown link 'fiber'; did you mean 'fibre'\?"),
        ("fibre:1,lte:2", "character 6"),
        ("4g", "character 1"),
        ("mix()", "a mix needs shares of profiles"),
        (
            "mix(satelite=2)",
            r"a mix is of profiles, one of ideal, fibre, .*, got 'satelite'; did you mean 'satellite'\?",
        ),
        ("mix(mix=1)", "a mix is of profiles, .*, got 'mix'"),
        ("mix(link=1)", "a mix is of profiles, .*, got 'link'"),
        ("mix(lora=1, lora=2)", "mix is given 'lora' twice"),
        ("mix(lora(), 2)", "mix: too many positional arguments"),
        ("mix(fibre=0)", "share of fibre must be > 0, got 0"),
        ("mix(fibre=1, lte=-1)", "share of lte must be > 0, got -1"),
        ("mix(fibre=1e309)", "share of fibre must be finite, got inf"),
        ("mix(fibre='x')", "share of fibre must be a number, got 'x'"),
        ("trace()", "missing a required argument: 'path'"),
        ("trace('')", "a trace needs the path of a CSV file, got ''"),
        ("trace(3)", "a trace needs the path of a CSV file, got 3"),
        ("lora(availability=2)", r"availability must be in \(0, 1\], got 2"),
    ],
)
def test_bad_text(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_links(text)


def test_other_refusals():
    for links in (ideal(), mix(fibre=1, lora=2)):
        with pytest.raises(ConfigError, match="num_clients must be an integer of 1 or more, got 0"):
            links.assign(0, seed=0)


def latencies(links, num_clients, seed=0):
    return [line.at(0).latency_seconds for line in links.assign(num_clients, seed)]


def test_largest_remainder():
    names = {profile.latency_seconds: name for name, profile in PROFILES.items()}

    def counts(links, num_clients):
        return Counter(names[latency] for latency in latencies(links, num_clients))

    mixed = mix(fibre=0.2, lte=0.5, satellite=0.2, lora=0.1)
    assert counts(mixed, 10) == {"fibre": 2, "lte": 5, "satellite": 2, "lora": 1}
    assert counts(mixed, 1000) == {"fibre": 200, "lte": 500, "satellite": 200, "lora": 100}
    # quotas of 7: 1.4, 3.5, 1.4, 0.7: the two left over go to lora, then lte
    assert counts(mixed, 7) == {"fibre": 1, "lte": 4, "satellite": 1, "lora": 1}
    assert counts(mix(fibre=1, lte=1, lora=1), 2) == {"fibre": 1, "lte": 1}  # ties: the first named
    assert counts(mix(fibre=1e308, lte=1e308), 4) == {"fibre": 2, "lte": 2}
    assert counts(parse_links("lora()"), 3) == {"lora": 3}


def test_only_the_seed_shuffles():
    links = mix(fibre=1, lora=1)
    assert latencies(links, 40, 3) == latencies(links, 40, 3)
    assert latencies(links, 40, 3) != latencies(links, 40, 4)
    assert latencies(links, 40, 3) != sorted(latencies(links, 40, 3))
    assert links.assign(5, 3) == links.assign(5, 3)
    first, second = parse_links("lte()").assign(2, seed=0)
    assert first.sessions != second.sessions


def test_who_gets_what_is_as_it_ever_was():
    """Fixed by seed 3: a change here would change every recorded run."""
    assert latencies(mix(lte=1, lora=1), 4, 3) == [1.0, 0.04, 0.04, 1.0]
    assert mix(lora=5).assign(3, 7) == parse_links("lora()").assign(3, 7)


def test_own_profiles_can_be_mixed(monkeypatch):
    monkeypatch.setattr(Links, "registry", dict(Links.registry))

    @dataclass(frozen=True, repr=False)
    class modem(Profile):
        """Two wires."""

        uplink_bits_per_second: float = 33.6e3
        downlink_bits_per_second: float = 56e3
        latency_seconds: float = 0.1
        steps_per_second: float = 5.0

        summary: ClassVar[str] = "two wires"

    [line] = parse_links("mix(modem=1)").assign(1, seed=0)
    assert line.uploaded(4200) == pytest.approx(1.1)


def test_paths_can_be_made_to_begin_anywhere(tmp_path):
    assert trace("a.csv").rooted(tmp_path) == trace(str(tmp_path / "a.csv"))
    assert trace("/b/a.csv").rooted(tmp_path) == trace("/b/a.csv")
    assert trace("~/a.csv").rooted(tmp_path) == trace(str(Path.home() / "a.csv"))
    assert mix(lora=1).rooted(tmp_path) == mix(lora=1)


# --- traces ---------------------------------------------------------------------------------------


def write(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "trace.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_trace(tmp_path):
    path = write(
        tmp_path,
        "7,0,1600,800,0.5,2,0",
        "3,0,800,8000,0.1,1,1",
        "3,10,0,8000,0.2,1,1",
        "",
        "7,4.5,1600,800,0.5,2,1",
        "3,1.2e1,400,8000,0.2,1,0",
    )
    three, seven = read_trace(path)
    assert three.uploaded(1050, 0.0) == pytest.approx(13.2)
    assert three.leaves(0) == 12
    assert three.next_available(12) == math.inf
    assert seven.next_available(0) == 4.5
    assert seven.leaves(5) == math.inf
    assert seven.computed(3, 0.0) == 1.5
    links = parse_links(f"trace({str(path)!r})")
    assert links == trace(str(path))
    assert links.assign(2, seed=9) == [three, seven]
    assert links.assign(1, seed=9) == [three]
    with pytest.raises(ConfigError, match=r"trace '.*trace.csv' has 2 clients, got 3 clients, expected 2 or fewer"):
        links.assign(3, seed=0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["0,0,1,1,0,1"], r"trace.csv, line 2: expected 7 columns, got 6"),
        (["0,0,1,1,0,1,1", "x,0,1,1,0,1,1"], r"line 3, column client: expected an integer of 0 or more, got 'x'"),
        (["-1,0,1,1,0,1,1"], r"line 2, column client: expected an integer of 0 or more, got '-1'"),
        (["0,1,1,1,0,1,1"], r"line 2, column seconds: expected 0 in the first row of client 0, got '1'"),
        (
            ["0,0,1,1,0,1,1", "0,5,1,1,0,1,1", "0,5,1,1,0,1,1"],
            r"line 4, column seconds: expected more than client 0's last 5.0, got '5'",
        ),
        (
            ["0,0,fast,1,0,1,1"],
            r"line 2, column uplink_bits_per_second: expected a finite number of 0 or more, got 'fast'",
        ),
        (["0,0,1,1,-1,1,1"], r"column latency_seconds: expected a finite number of 0 or more, got '-1'"),
        (["0,0,1,inf,0,1,1"], r"column downlink_bits_per_second: expected a finite number of 0 or more, got 'inf'"),
        (["0,0,1,1,0,nan,1"], r"column steps_per_second: expected a finite number of 0 or more, got 'nan'"),
        (["0,0,1_0,1,0,1,1"], r"column uplink_bits_per_second: expected .*, got '1_0'"),
        (["0,0,1,1,0,1,yes"], r"line 2, column available: expected 0 or 1, True or False, got 'yes'"),
        ([], r"trace.csv: expected one row or more after the header, got none"),
        (['0,0,"1'], r"trace must be a readable CSV file, got '.*trace.csv'"),
    ],
)
def test_bad_rows(tmp_path, rows, message):
    with pytest.raises(ConfigError, match=message):
        read_trace(write(tmp_path, *rows))


ROW = "0,0,1e6,2e6,0.1,10,1"
SHUFFLED = [5, 0, 3, 6, 2, 4, 1]


def shuffled(line: str) -> str:
    cells = line.split(",")
    return ",".join(cells[i] for i in SHUFFLED)


AS_PEOPLE_WRITE_THEM = {
    "blanks after commas": HEADER.replace(",", ", ") + "\n" + ROW.replace(",", ",  "),
    "blanks and quotes": '"client", ' + HEADER.partition(",")[2] + '\n"0", ' + ROW.partition(",")[2],
    "available is a word": f"{HEADER}\n{ROW[:-1]}True",
    "available is a number": f"{HEADER}\n{ROW[:-1]}1.0",
    "clients are numbers": f"{HEADER}\n0.0{ROW[1:]}",
    "an index without a name": f",{HEADER}\n17,{ROW}",
    "an index with pandas' name": f"Unnamed: 0,{HEADER}\n17,{ROW}",
    "another order": f"{shuffled(HEADER)}\n{shuffled(ROW)}",
    "empty rows of a spreadsheet": f"{HEADER}\n{ROW}\n,,,,,,\n, ,,,,,\n",
    "empty lines": f"\n{HEADER}\n\n{ROW}\n  \n\n",
    "semicolons": f"{HEADER}\n{ROW}".replace(",", ";"),
    "tabs": f"{HEADER}\n{ROW}".replace(",", "\t"),
    "a spreadsheet's line ends": f"{HEADER}\r\n{ROW}\r\n",
    "an old line end": f"{HEADER}\r{ROW}\r",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("what", AS_PEOPLE_WRITE_THEM)
def test_traces_as_people_write_them(tmp_path, what, encoding):
    (tmp_path / "trace.csv").write_bytes(AS_PEOPLE_WRITE_THEM[what].encode(encoding))
    (line,) = read_trace(tmp_path / "trace.csv")
    assert line == Connection((Conditions(0.0, 1e6, 2e6, 0.1, 10.0),))


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        (HEADER.replace("client", "user"), ROW, r"line 1: expected the columns .*; missing: client"),
        (HEADER + ",note", ROW + ",x", r"line 1: expected the columns .* got .*,note"),
        (HEADER + ",client", ROW + ",1", r"line 1: expected the columns .* got .*,client"),
        (HEADER.replace(",", ";"), ROW.replace(",", ";").replace("0.1", "0,1"), r"latency_seconds: .* got '0,1'"),
        (HEADER, "0.5" + ROW[1:], r"column client: expected an integer of 0 or more, got '0.5'"),
        (HEADER, "1e300" + ROW[1:], r"column client: expected an integer of 0 or more, got '1e300'"),
        (HEADER, ROW[:-1] + "0.5", r"column available: expected 0 or 1, True or False, got '0.5'"),
    ],
)
def test_what_cannot_be_told_is_refused(tmp_path, header, row, message):
    with pytest.raises(ConfigError, match=message):
        read_trace(write(tmp_path, row, header=header))


def test_bad_files(tmp_path):
    with pytest.raises(ConfigError, match=r"line 1: expected the columns client,seconds,.*, got seconds,client"):
        read_trace(write(tmp_path, header="seconds,client"))
    with pytest.raises(ConfigError, match=r"trace must be a readable CSV file, got '.*missing.csv': .*No such file"):
        trace(str(tmp_path / "missing.csv")).assign(1, seed=0)
    (tmp_path / "trace.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="trace must be a readable CSV file"):
        read_trace(tmp_path / "trace.csv")
    (tmp_path / "trace.csv").write_text("")
    with pytest.raises(ConfigError, match="line 1: expected the columns"):
        read_trace(tmp_path / "trace.csv")
