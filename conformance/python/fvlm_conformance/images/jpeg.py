"""A JPEG writer for what Pillow cannot write: scans of any kind, any sampling factors, any markers.

Written from ITU-T T.81, sections by their numbers there. `Picture` has the quantised coefficients, `write` makes a
file of them. Small pictures only: bits are put together in Python.
"""

import dataclasses
import struct

import numpy as np

# Figure A.6: natural position of the coefficient at each place in the zigzag.
ZIGZAG = sorted(range(64), key=lambda i: (s := i // 8 + i % 8, (i // 8 if s % 2 else i % 8)))

# Tables K.1 and K.2, in natural order.
LUMA = np.array(
    [16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29,
     51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121,
     120, 101, 72, 92, 95, 98, 112, 100, 103, 99]
)  # fmt: skip
CHROMA = np.full(64, 99)
for row, values in enumerate([[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]):
    CHROMA[row * 8 : row * 8 + 4] = values

# Table K.3 to K.6: how many codes there are of each length, and what they stand for.
DC_COUNTS = [
    [0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0],
    [0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
]
AC_COUNTS = [
    [0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 0x7D],
    [0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 0x77],
]
AC_VALUES = [
    bytes.fromhex(
        "01020300041105122131410613516107227114328191a1082342b1c11552d1f02433627282090a161718191a25262728292a3435363738"
        "393a434445464748494a535455565758595a636465666768696a737475767778797a838485868788898a92939495969798999aa2a3a4a5"
        "a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae1e2e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8f9fa"
    ),
    bytes.fromhex(
        "000102031104052131061241510761711322328108144291a1b1c109233352f0156272d10a162434e125f11718191a262728292a3536"
        "3738393a434445464748494a535455565758595a636465666768696a737475767778797a82838485868788898a92939495969798999aa2"
        "a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae2e3e4e5e6e7e8e9eaf2f3f4f5f6f7f8f9fa"
    ),
]


@dataclasses.dataclass
class Component:
    """A component as a frame header has it, and its plane at full size, float `[height, width]`."""

    plane: np.ndarray
    horizontal: int = 1
    vertical: int = 1
    table: int = 0
    name: int = 0


@dataclasses.dataclass
class Scan:
    """Components by place in the frame, first and last coefficient, and successive approximation (high, low)."""

    components: tuple
    first: int = 0
    last: int = 63
    high: int = 0
    low: int = 0
    restart: int = 0


@dataclasses.dataclass
class Options:
    """What stands around the scans."""

    frame: int = 0xC0
    quality: int = 85
    wide_tables: bool = False
    jfif: bool = True
    adobe: int | None = None
    huffman: str = "standard"
    fill: int = 0
    between: bytes = b""
    after: bytes = b""
    end: bool = True
    before: bytes = b""


def ceil(a, b):
    return -(-a // b)


def transform(plane):
    """A.3.3: the forward DCT of every block, `[rows, columns, 8, 8]`."""
    k, n = np.meshgrid(np.arange(8), np.arange(8), indexing="ij")
    basis = np.cos((2 * n + 1) * k * np.pi / 16) / 2
    basis[0] /= np.sqrt(2)
    rows, columns = plane.shape[0] // 8, plane.shape[1] // 8
    blocks = (plane - 128).reshape(rows, 8, columns, 8).swapaxes(1, 2)
    return basis @ blocks @ basis.T


def tables(quality):
    """Two quantisation tables as libjpeg scales them."""
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    return [np.clip((table * scale + 50) // 100, 1, 255).astype(int) for table in (LUMA, CHROMA)]


class Bits:
    """An entropy-coded segment (F.1.2.3): bits, with a zero after each 0xff."""

    def __init__(self):
        self.data, self.value, self.count = bytearray(), 0, 0

    def put(self, value, count):
        self.value = self.value << count | value & (1 << count) - 1
        self.count += count
        while self.count >= 8:
            self.count -= 8
            byte = self.value >> self.count & 0xFF
            self.data.append(byte)
            if byte == 0xFF:
                self.data.append(0)
        self.value &= (1 << self.count) - 1

    def flush(self):
        if self.count:
            self.put((1 << 8 - self.count) - 1, 8 - self.count)


class Counter:
    """Takes the same calls and only counts symbols, to know which codes a table needs."""

    def __init__(self):
        self.symbols = {}

    def symbol(self, table, symbol):
        self.symbols.setdefault(table, {}).setdefault(symbol, 0)
        self.symbols[table][symbol] += 1

    def put(self, value, count):
        pass

    def restart(self, number):
        pass


class Writer(Counter):
    """Writes symbols by codes: `codes[table][symbol]` is a pair of code and length."""

    def __init__(self, codes):
        self.bits, self.codes = Bits(), codes

    def symbol(self, table, symbol):
        self.bits.put(*self.codes[table][symbol])

    def put(self, value, count):
        self.bits.put(value, count)

    def restart(self, number):
        self.bits.flush()
        self.bits.data += bytes([0xFF, 0xD0 + number % 8])


def codes_of(counts, values):
    """Annex C: the code and length of each value."""
    result, code, at = {}, 0, 0
    for length, count in enumerate(counts, 1):
        for value in values[at : at + count]:
            result[value] = (code, length)
            code += 1
        at += count
        code <<= 1
    return result


def own_table(symbols, kind):
    """Counts and values of a table for `symbols`: `flat`, all codes of one length, or `steep`, of 1, 2, 3 ... bits."""
    values = sorted(symbols, key=lambda symbol: (-symbols[symbol], symbol))
    counts = [0] * 16
    if kind == "flat":
        # The code of ones only is none.
        counts[max(1, len(values).bit_length()) - 1] = len(values)
        return counts, values
    left = len(values)
    for length in range(1, 16):
        # One code a length, as long as the last length holds the rest.
        if left and left - 1 <= 2 ** (16 - length) - 1:
            counts[length - 1] = 1
            left -= 1
        else:
            break
    counts[15] += left
    return counts, values


def magnitude(value):
    """F.1.2.1: the category of a value and its bits."""
    size = int(abs(value)).bit_length()
    return size, value if value >= 0 else value - 1


class Coder:
    """Codes the blocks of one scan to `out`, a counter or a writer."""

    def __init__(self, out, scan, tables, progressive):
        self.out, self.scan, self.tables, self.progressive = out, scan, tables, progressive
        self.reset()

    def reset(self):
        self.dc = {}
        self.run = 0
        self.corrections = []

    def block(self, index, block):
        scan = self.scan
        if not self.progressive:
            self.dc_first(index, block)
            self.sequential(index, block)
        elif scan.first == 0:
            if scan.high:
                self.out.put(int(block[0]) >> scan.low & 1, 1)
            else:
                self.dc_first(index, block)
        elif scan.high:
            self.refine(index, block)
        else:
            self.ac_first(index, block)

    def dc_first(self, index, block):
        value = int(block[0]) >> (self.scan.low if self.progressive else 0)
        size, bits = magnitude(value - self.dc.get(index, 0))
        self.dc[index] = value
        self.out.symbol(("dc", self.tables[index]), size)
        self.out.put(bits, size)

    def sequential(self, index, block):
        table, zeros = ("ac", self.tables[index]), 0
        for value in block[1:]:
            if value == 0:
                zeros += 1
                continue
            while zeros > 15:
                self.out.symbol(table, 0xF0)
                zeros -= 16
            size, bits = magnitude(int(value))
            self.out.symbol(table, zeros << 4 | size)
            self.out.put(bits, size)
            zeros = 0
        if zeros:
            self.out.symbol(table, 0)

    def end_run(self):
        """G.1.2.2: the end-of-block run so far, and the correction bits that belong to it."""
        if self.run:
            size = self.run.bit_length() - 1
            self.out.symbol(self.table, size << 4)
            self.out.put(self.run, size)
            self.run = 0
        for bit in self.corrections:
            self.out.put(bit, 1)
        self.corrections = []

    def ac_first(self, index, block):
        scan = self.scan
        self.table, zeros = ("ac", self.tables[index]), 0
        for k in range(scan.first, scan.last + 1):
            value = int(block[k])
            value = abs(value) >> scan.low if value >= 0 else -(abs(value) >> scan.low)
            if value == 0:
                zeros += 1
                continue
            self.end_run()
            while zeros > 15:
                self.out.symbol(self.table, 0xF0)
                zeros -= 16
            size, bits = magnitude(value)
            self.out.symbol(self.table, zeros << 4 | size)
            self.out.put(bits, size)
            zeros = 0
        if zeros:
            self.run += 1
            if self.run == 0x7FFF:
                self.end_run()

    def refine(self, index, block):
        """G.1.2.3."""
        scan = self.scan
        self.table = ("ac", self.tables[index])
        values = [abs(int(value)) >> scan.low for value in block[scan.first : scan.last + 1]]
        last_new = max((k for k, value in enumerate(values) if value == 1), default=-1)
        zeros, bits = 0, []
        for k, value in enumerate(values):
            if value == 0:
                zeros += 1
                continue
            while zeros > 15 and k <= last_new:
                self.end_run()
                self.out.symbol(self.table, 0xF0)
                zeros -= 16
                for bit in bits:
                    self.out.put(bit, 1)
                bits = []
            if value > 1:
                bits.append(value & 1)
                continue
            self.end_run()
            self.out.symbol(self.table, zeros << 4 | 1)
            self.out.put(int(block[scan.first + k] >= 0), 1)
            for bit in bits:
                self.out.put(bit, 1)
            zeros, bits = 0, []
        if zeros or bits:
            self.run += 1
            self.corrections += bits
            if self.run == 0x7FFF or len(self.corrections) > 900:
                self.end_run()

    def finish(self):
        self.end_run()


class Picture:
    """The quantised coefficients of components, each `[rows, columns, 64]` in the zigzag, padded to whole MCUs."""

    def __init__(self, components, quality=85, scale_tables=1):
        self.components = components
        self.height, self.width = components[0].plane.shape
        self.tables = [table * scale_tables for table in tables(quality)]
        self.horizontal = max(component.horizontal for component in components)
        self.vertical = max(component.vertical for component in components)
        self.mcus = (
            -(-self.height // (8 * self.vertical)),
            -(-self.width // (8 * self.horizontal)),
        )
        self.coefficients = [self.quantise(component) for component in components]

    def quantise(self, component):
        rows, columns = self.mcus[0] * component.vertical * 8, self.mcus[1] * component.horizontal * 8
        # Which row of the picture is nearest, for any ratio of factors.
        place = [
            np.minimum(((np.arange(count) + 0.5) * most / own).astype(int), edge - 1)
            for count, most, own, edge in [
                (rows, self.vertical, component.vertical, self.height),
                (columns, self.horizontal, component.horizontal, self.width),
            ]
        ]
        blocks = transform(component.plane[np.ix_(*place)].astype(float))
        blocks = blocks.reshape(*blocks.shape[:2], 64)
        return np.rint(blocks / self.tables[component.table]).astype(int)[:, :, ZIGZAG]

    def blocks(self, scan):
        """The blocks of a scan in their order (A.2), a list for each MCU."""
        if len(scan.components) == 1:
            index = scan.components[0]
            component = self.components[index]
            rows = ceil(ceil(self.height * component.vertical, self.vertical), 8)
            columns = ceil(ceil(self.width * component.horizontal, self.horizontal), 8)
            for row in range(rows):
                for column in range(columns):
                    yield [(index, self.coefficients[index][row, column])]
            return
        for row in range(self.mcus[0]):
            for column in range(self.mcus[1]):
                mcu = []
                for index in scan.components:
                    h, v = self.components[index].horizontal, self.components[index].vertical
                    blocks = self.coefficients[index][row * v : row * v + v, column * h : column * h + h]
                    mcu += [(index, block) for block in blocks.reshape(-1, 64)]
                yield mcu


def code(picture, scan, out, progressive):
    coder = Coder(out, scan, [component.table for component in picture.components], progressive)
    for number, mcu in enumerate(picture.blocks(scan)):
        if scan.restart and number and number % scan.restart == 0:
            coder.finish()
            out.restart(number // scan.restart - 1)
            coder.reset()
        for index, block in mcu:
            coder.block(index, block)
    coder.finish()


def segment(marker, data, fill=0):
    return b"\xff" * fill + bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def write(picture, scans, options):
    """The file: `picture` in `scans`."""
    progressive = options.frame == 0xC2
    fill = options.fill
    out = b"\xff\xd8" + options.before
    if options.jfif:
        out += segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0", fill)
    if options.adobe is not None:
        out += segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([options.adobe]), fill)
    for number, table in enumerate(picture.tables):
        if not any(component.table == number for component in picture.components):
            continue
        values = table[ZIGZAG]
        if options.wide_tables:
            out += segment(0xDB, bytes([0x10 | number]) + struct.pack(">64H", *values), fill)
        else:
            out += segment(0xDB, bytes([number]) + bytes(values.tolist()), fill)
    frame = struct.pack(">BHHB", 8, picture.height, picture.width, len(picture.components))
    for component in picture.components:
        frame += bytes([component.name, component.horizontal << 4 | component.vertical, component.table])
    out += options.between + segment(options.frame, frame, fill)
    standard = {}
    for number in range(2):
        values = list(range(12))
        standard["dc", number] = (DC_COUNTS[number], values)
        standard["ac", number] = (AC_COUNTS[number], list(AC_VALUES[number]))
    if options.huffman == "standard":
        for (kind, number), (counts, values) in standard.items():
            out += segment(0xC4, bytes([(kind == "ac") << 4 | number]) + bytes(counts) + bytes(values), fill)
    interval = 0
    for scan in scans:
        if scan.restart != interval:
            interval = scan.restart
            out += segment(0xDD, struct.pack(">H", interval), fill)
        used = standard
        if options.huffman in ("flat", "steep"):
            counter = Counter()
            code(picture, scan, counter, progressive)
            used = {table: own_table(symbols, options.huffman) for table, symbols in counter.symbols.items()}
            for (kind, number), (counts, values) in used.items():
                out += segment(
                    0xC4, bytes([(kind == "ac") << 4 | number]) + bytes(counts) + bytes(values), fill
                )
        writer = Writer({table: codes_of(*parts) for table, parts in used.items()})
        code(picture, scan, writer, progressive)
        writer.bits.flush()
        header = bytes([len(scan.components)])
        for index in scan.components:
            component = picture.components[index]
            header += bytes([component.name, component.table * 0x11])
        header += bytes([scan.first, scan.last, scan.high << 4 | scan.low])
        out += options.between + segment(0xDA, header, fill) + bytes(writer.bits.data)
    return out + b"\xff" * fill + b"\xff\xd9" * options.end + options.after
