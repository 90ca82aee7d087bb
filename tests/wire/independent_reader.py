"""A second reader of docs/format.md in plain Python: it imports nothing from gradwire and none of its dependencies."""

import hashlib
import math
import struct
import zlib
from itertools import accumulate, pairwise

FIRES = [23593, 22938, 22282, 21627, 20644, 19333, 18022, 16712, 15401, 13435, 11633, 9994]
FIRES += [7209, 5472, 3670, 2556, 1573, 885, 469, 229, 111, 46, 15]
FIELDED = [31800, 31600, 31400, 31000, 30600, 30000, 29300, 28200, 25500, 23000, 19500, 14500]
FIELDED += [9900, 6050, 2950, 1050, 240, 50, 14]


class RangeCode:
    def __init__(self, data):
        self.data, self.at, self.span = data, 4, 2**32 - 1
        self.code = int.from_bytes((data + bytes(4))[:4], "big")
        self.low = 0

    def bit(self, counts):
        zeros, ones = counts
        bound = (self.span >> 16) * min(max(65536 * ones // (zeros + ones), 1), 65535)
        bit = self.code - self.low < bound
        self.low, self.span = (self.low, bound) if bit else (self.low + bound, self.span - bound)
        while self.span < 2**24:
            self.code = self.code * 256 + (self.data[self.at] if self.at < len(self.data) else 0)
            self.low, self.span, self.at = self.low * 256, self.span * 256, self.at + 1
        counts[bit] += 1024
        return bit

    def end(self):
        multiples = (-(-self.low >> n) << n for n in (32, 24, 16, 8, 0))
        last = next(x for x in multiples if x < self.low + self.span)
        assert self.code == last, "not the code of these bits"
        assert last.to_bytes(self.at, "big").rstrip(b"\0") == self.data, "more than the code"


def log8(v):
    e = v.bit_length() - 1
    return 8 * e + (v >> e - 3) % 8


def clip(x, m):
    return min(max(x, 0), m)


def sign(x):
    return (x > 0) - (x < 0)


class Contexts:
    """Section 17: an integer for each coordinate of a part's stretches."""

    def __init__(self, data, most):
        self.code, self.most, self.integers = RangeCode(data), most, []
        sizes = {"block": (419430, 48, 128, 512), "place": (524288, 48, 1536, 1024)}
        sizes |= {"sign": (2097152, 47, 56, 81), "size": (1258291, 336, 350)}
        self.contexts = {
            (k, i): [[c, 0] for _ in range(n)] for k, (c, *all_n) in sizes.items() for i, n in enumerate(all_n)
        }
        self.weights = {"block": [21845] * 3, "place": [21845] * 3, "sign": [28086] * 3}

    def learn(self, context, bit):
        c, n = context
        context[:] = c + ((bit * 2**22 - c) * (131072 // (2 * n + 3)) >> 16), min(n + 1, 127)

    def mixed(self, kind, *numbers):
        contexts = [self.contexts[kind, i][n] for i, n in enumerate(numbers)]
        indices = [c >> 10 for c, _ in contexts]
        logits = [round(256 * math.log((2 * i + 1) / (8191 - 2 * i))) for i in indices]
        weights = self.weights[kind]
        z = min(max(sum(x * w for x, w in zip(logits, weights, strict=True)) >> 16, -2560), 2560)
        p = min(max(round(65536 / (1 + math.exp(-z / 256))), 4), 65532)
        bit = int(self.code.bit([65536 - p, p]))
        weights[:] = [w + (x * (65536 * bit - p) >> 16) for x, w in zip(logits, weights, strict=True)]
        for context in contexts:
            self.learn(context, bit)
        return bit

    def size(self, v, pattern):
        for k in range(1, min(self.most, 15)):
            a, b = self.contexts["size", 0][24 * (k - 1) + (v >> 1)], self.contexts["size", 1][25 * (k - 1) + pattern]
            p = min(max((a[0] >> 7) + (b[0] >> 7), 4), 65532)
            bit = int(self.code.bit([65536 - p, p]))
            self.learn(a, bit)
            self.learn(b, bit)
            if not bit:
                return k
        if self.most <= 15:
            return self.most
        width, x = 0, 1
        while self.code.bit([1, 1]) and width < 30:
            width += 1
        for _ in range(width):
            x = 2 * x + self.code.bit([1, 1])
        assert 14 + x <= self.most, "beyond the most"
        return 14 + x

    def stretch(self, length, columns):
        above, sums, signs = ([0] * (columns + 2) for _ in range(3))
        first, total, r = len(self.integers), 0, 0
        while (done := len(self.integers) - first) < length:
            r, mean = r + 1, max((65536 * total + 32768) // (done + 8), 16)
            row = self.row(min(columns, length - done), mean, 128 - log8(65536 * r) - log8(mean), above, sums, signs)
            total += row

    def row(self, width, mean, offset, above, sums, signs):
        held, near, trend, skips = 0, mean, 0, 0
        one = two = before = left = 0
        for a in range(1, width + 1, 16):
            b = min(a + 16, width + 1)
            rate = log8(65536 * held + 8 * mean) - log8(65536 * (a + 7)) + 128
            q = log8(65536 * sum(sums[a:b]) + mean) - 32 + offset
            pattern = 4 * skips + 2 * any(above[a:b]) + (above[b] != 0)
            wanted = self.mixed(
                "block",
                clip((q + rate >> 2) - 8, 47),
                8 * pattern + clip((rate >> 3) - 4, 7),
                16 * clip((log8(near) >> 2) - 8, 31) + clip((q + log8(mean) >> 3) - 4, 15),
            )
            skips = (2 * skips + 1 - wanted) % 4
            if not wanted:
                left, above[a:b], near = above[b - 1], [0] * (b - a), max(near - (near >> 1) - (near >> 3), 15)
                one = two = before = 0
                self.integers += [0] * (b - a)
                continue
            for j in range(a, b):
                over, ahead, s, x = above[j], above[j + 1], min(sums[j], 255), 0
                q = log8(65536 * s + mean * (s < 16)) + offset
                v = clip((q + rate >> 2) - 8, 47)
                pattern = 4 * (3 * (4 * min(one, 3) + min(abs(over), 3)) + min(two, 2)) + min(abs(left) + abs(ahead), 3)
                c = 32 * clip((log8(near) >> 2) - 8, 31) + clip((q + log8(mean) >> 2) - 8, 31)
                if self.mixed("place", v, 192 * clip((rate >> 3) - 4, 7) + pattern, c):
                    up, of_column = sign(over), min(max(signs[j], -7), 7)
                    c = 27 * (sign(left) + 1) + 9 * (sign(ahead) + 1) + 3 * (up + 1) + before + 1
                    d = 16 * (before + 1) + 7 + of_column
                    before = 2 * self.mixed("sign", d, 20 * (up + 1) + 8 + (trend >> 12), c) - 1
                    trend += 32768 * before - trend >> 3
                    signs[j] += before
                    size = self.size(v, 5 * min(one, 4) + min(abs(over), 4))
                    x, shown = before * size, min(size, 15)
                    sums[j], held, near = sums[j] + shown, held + shown, near + 4096 * shown
                    rate = log8(65536 * held + 8 * mean) - log8(65536 * (j + 7)) + 128
                near -= near >> 4
                left, two, one, above[j] = over, one, abs(x), x
                self.integers.append(x)
            assert any(self.integers[a - b :]), "a block of nothing"
        return held


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0  # bytes, and the next bit

    def field(self, width):
        first, self.at = self.at, self.at + width
        assert self.at <= 8 * len(self.data), "truncated"
        return int.from_bytes(self.data[first // 8 : -(-self.at // 8)], "little") >> first % 8 & ((1 << width) - 1)

    def fields(self, k=0, width=0):
        found = [self.field(width) for _ in range(k)]
        assert self.field(-self.at % 8) == 0, "unused bits"
        return found

    def take(self, n):
        return self.field(8 * n).to_bytes(n, "little")

    def varint(self, low=0, high=2**64 - 1):
        groups = [self.field(8)]
        while groups[-1] > 127:
            groups.append(self.field(8))
        value = sum((group & 127) << 7 * i for i, group in enumerate(groups))
        assert max(low, 128 ** (len(groups) - 1) - (len(groups) == 1)) <= value <= high, "varint"
        return value

    def golomb(self, k, limit):
        m = self.varint(1, limit)
        b = (m - 1).bit_length()
        u, at, out = 2**b - m, -1, []
        heads = [self.field(b - 1) if m > 1 else 0 for _ in range(k)]
        for r in [r if r < u or m == 1 else 2 * r + self.field(1) - u for r in heads]:
            while not self.field(1):
                r += m
            at += r + 1
            out.append(at)
        self.fields()
        assert at < limit, "position beyond its limit"
        return out

    def symbols(self, coder, k, n):
        assert coder < 4, "coder"
        if coder in (0, 3):
            ends = self.varint(0, k - 1) if coder == 3 else k - 1
            heads = self.fields(ends + 1, (n - 1).bit_length())
            assert max(heads) < n, "symbol beyond the alphabet"
            assert coder == 0 or all(a != b for a, b in pairwise(heads)), "runs that are one"
            ends = pairwise([-1, *(self.golomb(ends, k - 1) if coder and ends else range(ends)), k - 1])
            return [head for head, (a, b) in zip(heads, ends, strict=True) for _ in range(b - a)]
        low, out = self.varint(0, n - 1), []
        if coder == 1:
            sizes = [(size, low + i) for i, size in enumerate(self.fields(self.varint(1, n - low), 4)) if size]
            total = sum(4096 >> size or 5000 for size, _ in sizes)
            assert total == 4096 or [size for size, _ in sizes] == [1], "code lengths"
            codes, code, before = {}, 0, 0
            for size, symbol in sorted(sizes):
                code, before = code << size - before, size
                codes[size, code], code = symbol, code + 1
            for _ in range(k):
                size, code = 1, self.field(1)
                while (size, code) not in codes:
                    size, code = size + 1, 2 * code + self.field(1)
                out.append(codes[size, code])
            self.fields()
            return out
        frequencies = [self.varint(0, 4096) for _ in range(self.varint(1, min(4096, n - low)))]
        assert sum(frequencies) == 4096, "frequencies"
        slots = [(low + i, f, at) for i, f in enumerate(frequencies) for at in range(f)]
        states = [self.field(32) for _ in range(4 if k >= 1024 else 1)]
        for i in range(k):
            symbol, f, offset = slots[states[i % len(states)] % 4096]
            x = f * (states[i % len(states)] // 4096) + offset
            states[i % len(states)] = x if x >= 65536 else x * 65536 + self.field(16)
            out.append(symbol)
        assert set(states) == {65536}, "final states"
        return out

    def words(self, seed, counter, purpose):
        while True:
            counter[0] += 1
            c, k0, k1 = counter, seed, int.from_bytes(hashlib.sha256(purpose).digest()[:8], "little")
            for _ in range(10):
                x, y = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
                c = [y >> 64 ^ c[1] ^ k0, y % 2**64, x >> 64 ^ c[3] ^ k1, x % 2**64]
                k0, k1 = (k0 + 0x9E3779B97F4A7C15) % 2**64, (k1 + 0xBB67AE8584CAA73B) % 2**64
            yield from c

    def seeded(self, d, k, seed, counter):
        found, words = {}, self.words(seed, counter, b"support")
        while len(found) < min(k, d - k):
            found[next(words) * d >> 64] = None
        return sorted({*range(d if k > d // 2 else 0)} ^ {*list(found)[: min(k, d - k)]})

    def levels(self, d):
        """Section 18: a field's hash, and what it says of each of its coordinates."""
        shapes, said, at = [], [], 0
        for _ in range(self.varint(1)):
            shapes.append((self.varint(1, d - sum(n for n, _ in shapes)), self.varint(1)))
            assert shapes[-1][1] <= shapes[-1][0], "columns"
        sizes = [-(-n // c) + c if n > c else 1 for n, c in shapes]
        unit, width = self.varint(1, 31), self.varint(1, min(sum(sizes), 65536))
        contexts = Contexts(self.take(self.varint()), 31 // unit)
        contexts.stretch(sum(sizes), width)
        contexts.code.end()
        levels = [unit * x for x in contexts.integers]
        for size, (n, c) in zip(sizes, shapes, strict=True):
            said += [levels[at + i // c] + (levels[at + size - c + i % c] if n > c else 0) for i in range(n)]
            at += size
        text = b"".join(struct.pack("<QQ", n, c) for n, c in shapes) + bytes(x % 256 for x in levels)
        return hashlib.sha256(text).hexdigest()[:8], said

    def dithered(self, length, round_, field=None):
        k, head, seed, client = self.varint(1, length), self.field(8), self.varint(), self.varint()
        named, said = (None, [0] * length) if field is None else field
        assert field is None or self.take(4).hex() == named, "not that field"
        assert len(said) == length, "a field of other coordinates"
        level, golden, apart = head % 128, head > 127, self.varint(0, k)
        listed = self.golomb(apart, length) if apart else []
        code, words = RangeCode(self.take(self.varint())), []
        made = self.words(seed, [0, 0, 0 if golden else round_, client], b"thresholds")
        fires = FIELDED if field else FIRES
        out, counts, reach = [], [[32768 - n, n] for n in fires], len(fires) - 13
        for i in range(length):
            words += [next(made)] if i % 2**32 == 0 else []
            x = (i * 0x9E3779B1 + words[-1]) % 2**32
            x = (x ^ x >> 16) * 0x7FEB352D % 2**32 ^ words[-1] >> 32
            x = (x ^ x >> 15) * 0x846CA68B % 2**32
            x = ((x ^ x >> 16) + golden * round_ * 0x9E3779B9) % 2**32
            e = x.bit_length()
            octave = 2 * e + (x << 32 - e >= 3037000500) - clip(level + said[i], 127)
            assert octave > reach or i not in listed, "a candidate is listed"
            if i in listed if octave > reach else code.bit(counts[max(0, octave + 12)]):
                out.append(i)
        code.end()
        assert len(out) == k, "count"
        return out

    def integers(self, k, largest):
        code, out, counts = RangeCode(self.take(self.varint())), [], [[512, 512] for _ in range(64)]
        counts[0] = [3892, 204]
        for _ in range(k):
            e, x = 0, 1
            while 2 << e <= largest and code.bit(counts[e]):
                e += 1
            for j in range(e):
                x = 2 * x + code.bit([1, 1] if j else counts[32 + e])
            out.append(x)
        code.end()
        assert max(out) == largest, "largest"
        return out

    def support(self, codec, length, round_, reference, field=None):
        if codec in (0, 1, 9):
            k = self.varint(1, length) if codec == 9 else length * codec
            return sorted((round_ * k + j) % length for j in range(k))
        if codec == 2:
            return self.golomb(self.varint(1, length), length)
        if codec == 3:
            return [i for i, bit in enumerate(self.fields(length, 1)) if bit]
        if codec in (10, 12):
            assert codec == 10 or field, "no field"
            return self.dithered(length, round_, field if codec == 12 else None)
        if codec == 4:
            return self.seeded(length, self.varint(1, length), self.varint(), [0, 0, round_, self.varint()])
        if codec == 5:
            k, inner = self.varint(0, length), self.field(8)
            assert inner in (0, 2, 3, 6, 7, 8), "codec of extra indices"
            known = sorted(i for _, i in sorted((-abs(x), i) for i, x in enumerate(reference) if x)[:k])
            extra = self.support(inner, length, round_, None)
            assert len({*known, *extra}) == k + len(extra), "reference does not fit"
            return known + extra
        out, at = [], -1
        if codec == 6:
            k = self.varint(1, length)
            skipped, kept = (pairwise([-1, *self.golomb(k, length + 1)]) for _ in range(2))
            for (a, b), (c, e) in zip(skipped, kept, strict=True):
                out += range(at + b - a, at + b - a + e - c)
                at = out[-1] + 1
        elif codec == 7:
            k, b, cap = self.varint(1, length), self.varint(0, 32), self.varint(1, 255)
            quotients, low = self.symbols(2, k, cap + 1), self.fields(k, b)
            gaps = zip([q + self.varint() if q == cap else q for q in quotients], low, strict=True)
            out = list(accumulate(((q << b) + r + 1 for q, r in gaps), initial=-1))[1:]
        else:
            assert codec == 8, "support codec"
            for left in reversed(range(self.varint(2))):
                size = self.varint(1, length - at - 2) if left else length - at - 1
                out += [at + 1 + i for i in self.golomb(k, size)] if (k := self.varint(0, size)) else []
                at += size
        assert 0 <= max(out, default=-1) < length, "index beyond the end"
        return out

    def floats(self, kind, coder, k):
        w, t = ((8, 23), (5, 10), (8, 7))[kind]
        if coder:
            exponents, rest = self.symbols(coder, k, 2**w), self.fields(k, t + 1)
            bits = [(r >> t << w + t) + (e << t) + r % 2**t for e, r in zip(exponents, rest, strict=True)]
        else:
            bits = self.fields(k, w + t + 1)
        assert all(~b >> t & (2**w - 1) for b in bits), "not finite"
        raw, number, shift = (("I", "f", 0), ("H", "e", 0), ("I", "f", 16))[kind]
        return struct.unpack(f"<{k}{number}", struct.pack(f"<{k}{raw}", *(b << shift for b in bits)))

    def values(self, kind, coder, indices):
        k, numbers = len(indices), []
        if kind < 3:
            return self.floats(kind, coder, k)
        if kind in (3, 6):
            n, block = self.varint(2, 2**16), self.varint(0, 2**48 - 1)
            blocks = [i // block if block else 0 for i in indices]
            ranks = list(accumulate((a != b for a, b in pairwise(blocks)), initial=0))
            scales = self.floats(0, 0, ranks[-1] + 1)
            zeros = self.symbols(0, len(scales), n) if kind == 6 else [(n - 1) / 2] * len(scales)
            numbers = [scales[i] * (s - zeros[i]) for i, s in zip(ranks, self.symbols(coder, k, n), strict=True)]
        elif kind == 4:
            table = self.floats(0, 0, self.varint(1, 2**15))
            numbers = [table[s // 2] * (-1) ** s for s in self.symbols(coder, k, 2 * len(table))]
        elif kind == 8:
            assert coder == 0, "coder of multiples"
            (step,), largest = self.floats(0, 0, 1), self.varint(1, 2**24)
            signs, sizes = self.fields(k, 1), self.integers(k, largest) if largest > 1 else [1] * k
            assert step > 0, "step"
            numbers = [(-1) ** s * x * step for s, x in zip(signs, sizes, strict=True)]
        elif kind == 7:
            assert coder == 0, "coder of groups"
            for left in reversed(range(self.varint(2, k))):
                size = self.varint(1, k - len(numbers) - left) if left else k - len(numbers)
                inner, how = self.field(4), self.field(4)
                assert inner not in (5, 7), "kind of a group"
                numbers += self.values(inner, how, [0] * size)
        else:
            assert kind == 5, "value kind"
            m, r = self.varint(1, k), self.varint(1)
            x = self.floats(0, coder, r * (m + k // m))
            rows = [x[i : i + r] for i in range(0, len(x), r)]
            numbers = [list(accumulate(a * q[i] for i, a in enumerate(p)))[-1] for p in rows[:m] for q in rows[m:]]
        return struct.unpack(f"<{k}f", struct.pack(f"<{k}f", *numbers))


def context_part(source, length):
    """Indices and numbers of a part with contexts."""
    shapes, left = [], length
    for rest in reversed(range(source.varint(1))):
        size = source.varint(1, left - 1) if rest else left
        shapes.append((size, source.varint(1, min(size, 65536))))
        left -= size
    codec = source.field(8)
    assert (codec in (67, 68), left) == (True, 0), "value codec, or stretches"
    n = source.varint(2, 65536) if codec == 67 else source.varint(1, 32768)
    table = source.floats(0, 0, 1 if codec == 67 else n)
    contexts = Contexts(source.take(source.varint()), n // 2 if codec == 67 else n)
    for shape in shapes:
        contexts.stretch(*shape)
    contexts.code.end()
    indices = [i for i, x in enumerate(contexts.integers) if x]
    assert indices, "nothing"
    integers = [contexts.integers[i] for i in indices]
    if codec == 68:
        numbers = [sign(x) * table[abs(x) - 1] for x in integers]
    else:
        numbers = [table[0] * (x - (0 if n % 2 else sign(x) / 2)) for x in integers]
    return indices, list(struct.unpack(f"<{len(numbers)}f", struct.pack(f"<{len(numbers)}f", *numbers)))


def read_container(blob, reference=None, field=None):
    """(header, indices, values), values in the order of the indices; ``reference`` is a list of d floats, ``field`` is
    what a header with one has under that name."""
    assert blob[:3] + blob[-4:] == b"GW\x01" + struct.pack("<I", zlib.crc32(blob[:-4])), "no container"
    source, all_indices, all_values, start = Reader(blob[:-4]), [], [], 0
    flags = source.take(4)[3]
    assert flags < (64 if flags & 1 else 32), "flags"
    header = {name: source.varint() for name in ("d", "round", "sequence")} | {"layout": source.take(4).hex()}
    header["reference"] = source.take(8).hex() if flags & 2 else None
    header["sum_weights"] = struct.unpack("<d", source.take(8))[0] if flags & 1 else None
    header["packet"] = [source.varint(), source.varint()] if flags & 8 else None
    for _ in range(source.varint(2) if flags & 4 else 1):
        length = source.varint() if flags & 4 else header["d"]
        codec = source.field(8)
        if codec == 11:
            indices, numbers = context_part(source, length)
            all_values += numbers
        else:
            indices = source.support(codec, length, header["round"], (reference or [])[start : start + length], field)
            all_values += source.values(source.field(4), source.field(4), indices) if indices else []
        all_indices += [start + i for i in indices]
        start += length
    if flags & 32:
        header["field"] = source.levels(header["d"])
    padding = source.take(len(source.data) - source.at // 8)
    assert (start, bool(padding), any(padding)) == (header["d"], flags & 16 > 0, False), "parts, or left over"
    return header, all_indices, all_values


def read_file(data):
    """(spec, metadata, [(name, dtype's code or name, shape, blob)]) of a .gw file; a float's blob is a container."""
    file, heads = Reader(data), []
    assert file.take(7) == b"GWFILE\x01", "no .gw file of version 1"
    end = file.varint() + file.at // 8
    texts = iter(lambda: file.take(file.varint()).decode(), None)
    spec, metadata = next(texts), {next(texts): next(texts) for _ in range(file.varint())}
    for _ in range(file.varint()):
        name, code = next(texts), file.field(8)
        dtype = (next(texts), file.varint())[0] if code == 255 else code
        heads.append((name, dtype, [file.varint() for _ in range(file.varint())]))
    assert file.take(4) == struct.pack("<I", zlib.crc32(data[:end])), "header checksum"
    tensors = [(*head, file.take(file.varint())) for head in heads]
    assert file.at == 8 * len(data), "bytes left over"
    return spec, metadata, tensors
