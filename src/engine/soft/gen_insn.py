#!/usr/bin/env python3
"""gen_insn.py - turns insn.tbl into the decoder's tables, the exec binding and the row descriptions.

    gen_insn.py insn.tbl cpu_features.def OUTDIR

writes  insn_ids.gen.h     enum insn_id
        insn_exec.gen.h    a prototype for every exec function the table binds
        insn_tables.gen.c  decision trees, dec_rows[], insn_execs[], insn_rows[]
        insn_stub.gen.c    weak do-nothing exec functions, for tests that only decode

The language of insn.tbl is described at its top.  Anything odd is an error with a line number: an
unknown word, an operand that contradicts the encoding, two rows that match the same bytes.
"""
import re
import sys

PREFIXES = (0, 0x66, 0xF3, 0xF2)
PREFIX_WORDS = {"NP": {0}, "66": {1}, "F3": {2}, "F2": {3}, "NFx": {0, 1}, "!F3": {0, 1, 3}}
LEGACY_MAPS = {"1": 0, "0F": 1, "0F38": 2, "0F3A": 3}
VEX_MAPS = {"0F": 0, "0F38": 1, "0F3A": 2}
EVEX_MAPS = {"0F": 0, "0F38": 1, "0F3A": 2, "MAP5": 3, "MAP6": 4}
VEX_L = {"128": {0}, "256": {1}, "512": {2}, "L0": {0}, "L1": {1}}
# The order in which a tree asks.  Children per question.
QUESTIONS = (("prefix", 4), ("mod", 2), ("reg", 8), ("rm", 8), ("w", 2), ("l", 4), ("rexr", 2), ("rexb", 2))

FLAG_BITS = {"c": 0, "p": 2, "a": 4, "z": 6, "s": 7, "t": 8, "i": 9, "d": 10, "o": 11}
BYTES = {"b": 1, "w": 2, "d": 4, "q": 8, "t": 10, "dq": 16, "qq": 32, "zz": 64}
GPR_SIZES = {"b": "1", "w": "2", "d": "4", "q": "8", "v": "SIZE_V", "z": "SIZE_Z", "y": "SIZE_Y",
             "c": "SIZE_V", "p": "SIZE_FAR", "s": "SIZE_TABLE", "a": "SIZE_BOUND", "": "SIZE_NONE"}
VEC_SIZES = {"x": "SIZE_VL", "h": "SIZE_VL2", "f": "SIZE_VL4", "e": "SIZE_VL8"}
SCALARS = {"ss": 4, "sd": 8, "sh": 2}
FIXED = {"AL": (0, "b"), "CL": (1, "b"), "AX": (0, "w"), "DX": (2, "w"), "EAX": (0, "d"),
         "EDX": (2, "d"), "rAX": (0, "v"), "rAXz": (0, "z")}
SEGS = ("ES", "CS", "SS", "DS", "FS", "GS")
IMMS = {"Ib": ("IMM_B", "1"), "Ibs": ("IMM_BS", "1"), "Iw": ("IMM_W", "2"),
        "Iz": ("IMM_Z", "SIZE_Z"), "Iv": ("IMM_V", "SIZE_V"), "Jb": ("IMM_BS", "SIZE_V"),
        "Jz": ("IMM_Z", "SIZE_V"), "Ap": ("IMM_FAR", "SIZE_FAR")}
# letter(s) -> (operand kind, where the operand lives, does it allow memory, register)
LETTERS = {"E": ("OP_GPR_RM", "gpr", 1, 1), "R": ("OP_GPR_RM", "gpr", 0, 1),
           "M": ("OP_GPR_RM", "gpr", 1, 0), "G": ("OP_GPR_REG", "gpr", 0, 0),
           "B": ("OP_GPR_VVVV", "gpr", 0, 0), "Z": ("OP_GPR_OPC", "gpr", 0, 0),
           "V": ("OP_VEC_REG", "vec", 0, 0), "W": ("OP_VEC_RM", "vec", 1, 1),
           "U": ("OP_VEC_RM", "vec", 0, 1), "H": ("OP_VEC_VVVV", "vec", 0, 0),
           "L": ("OP_VEC_IS4", "vec", 0, 0), "P": ("OP_MMX_REG", "mmx", 0, 0),
           "Q": ("OP_MMX_RM", "mmx", 1, 1), "N": ("OP_MMX_RM", "mmx", 0, 1),
           "KG": ("OP_K_REG", "k", 0, 0), "KE": ("OP_K_RM", "k", 1, 1),
           "KR": ("OP_K_RM", "k", 0, 1), "KH": ("OP_K_VVVV", "k", 0, 0),
           "VM": ("OP_VSIB", "vsib", 1, 0), "X": ("OP_STR_SRC", "gpr", 0, 0),
           "Y": ("OP_STR_DST", "gpr", 0, 0), "O": ("OP_MOFFS", "gpr", 0, 0),
           "C": ("OP_CR", "gpr", 0, 0), "D": ("OP_DR", "gpr", 0, 0)}
CLASSES = ("gpr", "vexgpr", "x87", "mmx", "sse", "avx", "avx512", "k", "fwait")
SPECIALS = ("none", "gather", "scatter", "maskmov", "maskmovu", "compress", "expand", "xsave",
            "fxsave", "fpenv", "control")
# What the translator makes of a row: enum insn_xlat.
XLATS = ("interp", "copy", "vec", "lea", "nop", "push", "pop", "leave", "string", "sys", "jcc", "jmp", "jmpind", "call",
         "callind", "ret")
# Attribute words that are just a ROW_ bit.
ROW_WORDS = {"end": "END", "lock": "LOCK", "hint": "HINT", "bitstring": "BITSTRING", "fpx": "FPX",
             "align": "ALIGN", "er": "ER", "sae": "SAE", "pair": "PAIR", "namea": "NAMEA",
             "gprr": "GPR_READ", "gprw": "GPR_WRITE", "scalar": "SCALAR",
             "nf": "FAULTS_WHOLE", "count": "COUNT", "xmm0w": "XMM0_WRITE", "distinct": "DISTINCT"}


class TableError(Exception):
    pass


class Operand:
    def __init__(self, text):
        self.access = {"=": 2, "+": 3}.get(text[0], 1)
        self.text = text.lstrip("=+")
        self.letter = self.type = self.memtype = ""
        self.fixed = 0
        self.mem = self.reg = False
        self.where = None
        self.parse()

    def parse(self):
        t = self.text
        if t in FIXED:
            self.fixed, self.type = FIXED[t]
            self.kind, self.size = "OP_GPR_FIXED", GPR_SIZES[self.type]
            self.where = "gpr"
        elif t in SEGS:
            self.kind, self.size, self.fixed = "OP_SEG", "2", SEGS.index(t)
        elif t in IMMS:
            self.kind = {"I": "OP_IMM", "J": "OP_REL", "A": "OP_FAR"}[t[0]]
            self.size = IMMS[t][1]
        elif t == "I2b":
            self.kind, self.size = "OP_IMM2", "1"
        elif t == "1":
            self.kind, self.size = "OP_ONE", "1"
        elif t == "Sw":
            self.kind, self.size = "OP_SEG_REG", "2"
        elif t in ("ST", "STi"):
            self.kind, self.size = ("OP_STI" if t == "STi" else "OP_ST0"), "10"
        elif t == "XMM0":
            self.kind, self.size = "OP_XMM0", "16"
        else:
            self.parse_lettered(t)
            return
        self.msize = self.size

    def parse_lettered(self, t):
        m = re.fullmatch(r"(K[GERH]|VM|[A-Z])([a-z]*)(?:/([a-z]+))?", t)
        if not m or m.group(1) not in LETTERS:
            raise TableError(f"operand '{self.text}' is not known")
        self.letter, self.type, self.memtype = m.group(1), m.group(2), m.group(3) or m.group(2)
        self.kind, self.where, mem, reg = LETTERS[self.letter]
        self.mem, self.reg = bool(mem), bool(reg)
        self.size = self.size_of(self.type, True)
        self.msize = self.size_of(self.memtype, False)

    def size_of(self, t, register):
        if self.where == "gpr" or self.where == "k":
            if self.letter == "M" and t in VEC_SIZES:
                return VEC_SIZES[t]
            if t in GPR_SIZES:
                return GPR_SIZES[t]
            if t in BYTES:
                return str(BYTES[t])
        elif self.where == "mmx" and t in ("d", "q"):
            return "8" if register else str(BYTES[t])
        else:
            if t in VEC_SIZES:
                return VEC_SIZES[t]
            n = SCALARS.get(t) or BYTES.get(t)
            if n:
                return str(max(16, n)) if register else str(n)
        raise TableError(f"operand '{self.text}': size '{t}' is not known")


class Row:
    def __init__(self, line, mnemonic, operands, encoding, attrs):
        self.line, self.mnemonic, self.encoding = line, mnemonic, encoding
        self.ops = [Operand(o) for o in operands.split(",")] if operands else []
        self.vex = self.evex = self.modrm = False
        self.map = None
        self.sets = {}  # question -> set of answers this row accepts
        self.modes = {0, 1}
        self.dec = set()
        self.parse_encoding(encoding.split())
        self.parse_attrs(attrs.split())
        self.finish()

    # --- encoding -----------------------------------------------------------------------------

    def parse_encoding(self, words):
        if words and re.match(r"E?VEX\.", words[0]):
            self.parse_vex(words.pop(0).split("."))
        else:
            self.parse_legacy(words)
        if not words or not re.fullmatch(r"[0-9A-F]{2}(\+r)?", words[0]):
            raise TableError("no opcode")
        self.opcode, self.plus_r = int(words[0][:2], 16), words[0].endswith("+r")
        for w in words[1:]:
            self.parse_encoding_word(w)

    def parse_legacy(self, words):
        """Prefix and map: 66, F2, F3 are prefixes only when more than details follow."""
        more = len(words) > 1 and re.match(r"[0-9A-F]{2}", words[1])
        if words and words[0] in PREFIX_WORDS and (more or not re.match("[0-9A-F]", words[0])):
            self.sets["prefix"] = PREFIX_WORDS[words.pop(0)]
        self.map = LEGACY_MAPS[words.pop(0) if words and words[0] in LEGACY_MAPS else "1"]

    def parse_vex(self, parts):
        self.evex = parts[0] == "EVEX"
        self.vex = not self.evex
        maps = EVEX_MAPS if self.evex else VEX_MAPS
        self.sets["prefix"] = {0}
        for p in parts[1:]:
            if p in VEX_L:
                self.sets["l"] = self.sets.get("l", set()) | VEX_L[p]
            elif p in ("LIG", "WIG"):
                continue
            elif p in ("NP", "66", "F3", "F2"):
                self.sets["prefix"] = PREFIX_WORDS[p]
            elif p in ("W0", "W1"):
                self.sets["w"] = {int(p[1])}
            elif p in maps:
                self.map = maps[p]
            else:
                raise TableError(f"'{p}' in {'.'.join(parts)}")
        if self.map is None:
            raise TableError("no opcode map")
        self.lig = "LIG" in parts
        if not self.lig and "l" not in self.sets:
            self.sets["l"] = {0, 1, 2} if self.evex else {0, 1}

    def parse_encoding_word(self, w):
        if w == "/r":
            self.modrm = True
        elif m := re.fullmatch(r"/(\d)(?:-(\d))?", w):
            self.modrm = True
            self.sets["reg"] = set(range(int(m[1]), int(m[2] or m[1]) + 1))
        elif m := re.fullmatch(r"(reg|rm)=([\d,-]+)", w):
            self.modrm = True
            self.sets[m[1]] = self.parse_set(m[2])
        elif w in ("mod=r", "mod=m"):
            self.modrm = True
            self.sets["mod"] = {int(w == "mod=r")}
        elif m := re.fullmatch(r"r=([\d,-]+)", w):
            self.r_set = self.parse_set(m[1])
        elif m := re.fullmatch(r"(rex[rb])=([01])", w):
            self.sets[m[1]] = {int(m[2])}
        elif w in ("W0", "W1"):
            self.sets["w"] = {int(w[1])}
        elif w in ("i64", "o64"):
            self.modes = {0} if w == "i64" else {1}
        elif w in ("d64", "f64", "modr"):
            self.dec.add({"d64": "D64", "f64": "F64", "modr": "MODR"}[w])
        else:
            raise TableError(f"'{w}' in the encoding is not known")

    @staticmethod
    def parse_set(text):
        out = set()
        for part in text.split(","):
            lo, _, hi = part.partition("-")
            out |= set(range(int(lo), int(hi or lo) + 1))
        return out

    def opcodes(self):
        if not self.plus_r:
            return [self.opcode]
        return [self.opcode + i for i in getattr(self, "r_set", range(8))]

    # --- attributes ---------------------------------------------------------------------------

    def parse_attrs(self, words):
        self.exec, self.by, self.cls, self.special = "vec", (), None, "none"
        self.features, self.alt, self.size_attr = [], None, None
        self.elem = self.disp8n = 0
        self.row = set()
        self.fl = {"fr": 0, "fw": 0, "fu": 0, "fc": 0}
        self.xlat = None
        self.unaligned = False
        for w in words:
            key, eq, value = w.partition("=")
            if not eq:
                self.parse_attr_word(w)
            elif key in self.fl:
                self.fl[key] = sum(1 << FLAG_BITS[c] for c in value)
            elif key == "exec":
                self.exec = value
            elif key == "by":
                self.by = tuple(value.split(","))
            elif key == "feat":
                self.features = value.split("+")
            elif key == "else":
                self.alt = value
            elif key == "size":
                self.size_attr = value
            elif key == "class":
                self.cls = value
            elif key == "special":
                self.special = value
            elif key == "x":
                self.xlat = value
            elif key == "bc" or key == "el":
                if self.elem:
                    raise TableError("bc= and el= together")
                self.elem = int(value)
                if key == "bc":
                    self.row.add("BCAST")
            elif key == "n":
                self.disp8n = int(value)
            elif key == "mask":
                self.row |= {"k": {"MASK"}, "kz": {"MASK", "MASK_Z"},
                             "req": {"MASK", "MASK_REQ"}}[value]
            else:
                raise TableError(f"attribute '{w}' is not known")
        if self.special not in SPECIALS:
            raise TableError(f"special '{self.special}' is not known")
        if self.xlat is None:
            self.xlat = "vec" if self.exec == "vec" else "interp"
        if self.xlat not in XLATS:
            raise TableError(f"x={self.xlat} is not known")
        if self.fl["fc"] & ~self.fl["fu"]:
            raise TableError("fc= names a flag that fu= does not")

    def parse_attr_word(self, w):
        if w in ROW_WORDS:
            self.row.add(ROW_WORDS[w])
        elif w == "unaligned":
            self.unaligned = True
        elif w == "vexgpr":
            self.cls = "vexgpr"
        else:
            raise TableError(f"attribute '{w}' is not known")

    # --- what follows from the rest -------------------------------------------------------------

    def finish(self):
        self.finish_operands()
        self.finish_class()
        self.finish_size()
        self.finish_vector()
        if "lock" in self.row and "m" not in self.by:
            raise TableError("LOCK needs by=m")

    def finish_operands(self):
        rms = [o for o in self.ops if o.mem or o.reg]
        if len(rms) > 1:
            raise TableError("two ModRM.rm operands")
        self.rm_op = rms[0] if rms else None
        if self.rm_op:
            if not self.modrm:
                raise TableError("ModRM operand without /r or /digit")
            if not (self.rm_op.mem and self.rm_op.reg) and "MODR" not in self.dec:
                self.sets.setdefault("mod", {int(self.rm_op.reg)})
        kinds = {o.kind for o in self.ops}
        if self.plus_r and kinds & {"OP_GPR_OPC"}:
            self.dec.add("OPC_REG")
        if "OP_SEG" in kinds:
            self.dec.add("OPC_SEG")
        if "OP_MOFFS" in kinds:
            self.dec.add("MOFFS")
        for o in self.ops:
            if o.kind == "OP_GPR_REG":
                self.dec.add("REG_B" if o.type == "b" else "GPR_REG")
            if o.kind in ("OP_GPR_RM", "OP_GPR_OPC") and o.type == "b":
                self.dec.add("RM_B" if o.kind == "OP_GPR_RM" else "REG_B")
            if o.letter == "M" and o.type == "p" and len(self.ops) > 1:
                self.dec.add("FAR")  # not of JMP and CALL: see far.c
        self.mem_possible = bool(self.modrm and 0 in self.sets.get("mod", {0, 1})
                                 and "MODR" not in self.dec)
        self.reg_possible = bool(self.modrm and 1 in self.sets.get("mod", {0, 1}))
        if self.modrm:
            self.dec.add("MODRM")

    def finish_class(self):
        if self.cls is None:
            wheres = {o.where for o in self.ops}
            if not self.vex and not self.evex and 0xD8 <= self.opcode <= 0xDF and self.map == 0:
                self.cls = "x87"
            elif self.evex:
                self.cls = "avx512"
            elif self.vex:
                self.cls = "k" if "k" in wheres else "avx"
            elif "vec" in wheres:
                self.cls = "sse"
            elif "mmx" in wheres:
                self.cls = "mmx"
            else:
                self.cls = "gpr"
        if self.cls not in CLASSES:
            raise TableError(f"class '{self.cls}' is not known")
        self.implied = {"avx": ["AVX"], "avx512": ["AVX512F"], "k": ["AVX512F"]}.get(self.cls, [])
        self.implied = [f for f in self.implied if f not in self.features]

    def finish_size(self):
        types = [o.type for o in self.ops if o.where == "gpr" and o.letter not in ("C", "D")]
        rule = self.size_attr
        if rule is None:
            if "v" in types or "FAR" in self.dec or {"s", "a"} & set(types):
                rule = "v"
            else:
                rule = next((t for t in types if t in ("z", "y", "c", "b", "w", "d", "q")), "v")
        self.size_rule = rule
        branch = {"OP_REL"} & {o.kind for o in self.ops}
        if "F64" in self.dec and (branch or self.mnemonic in ("ret", "call", "jmp")):
            self.dec.add("BRANCH")

    def finish_vector(self):
        kinds = {o.kind for o in self.ops}
        if kinds & {"OP_GPR_VVVV", "OP_VEC_VVVV", "OP_K_VVVV"}:
            self.dec.add("VVVV")
        for kind, bit in (("OP_K_REG", "K_REG"), ("OP_K_RM", "K_RM"), ("OP_K_VVVV", "K_VVVV"),
                          ("OP_VSIB", "VSIB")):
            if kind in kinds:
                self.dec.add(bit)
        for bit in ("MASK", "MASK_Z", "MASK_REQ", "BCAST", "ER", "SAE", "SCALAR", "LOCK", "END"):
            if bit in self.row:
                self.dec.add(bit)
        if self.cls == "vexgpr":
            self.dec.add("VEXGPR")
        if "VSIB" in self.dec and self.vex:
            self.dec.add("DISTINCT")
        if "VSIB" in self.dec and self.evex and self.special == "gather":
            self.dec.add("DEST_NOT_SRC")
        if "DISTINCT" in self.row:
            self.dec.add("DEST_NOT_SRC")
        if self.rm_op and self.rm_op.access & 2:
            self.dec.add("RM_WRITE")
        if self.cls not in ("gpr", "vexgpr"):
            self.finish_vector_attrs()

    def finish_vector_attrs(self):
        for o in self.ops:
            gpr_reg = o.where == "gpr" and (o.letter in ("G", "E", "R", "B") or
                                            o.kind == "OP_GPR_FIXED")
            if gpr_reg and o.access & 1:
                self.row.add("GPR_READ")
            if gpr_reg and o.access & 2:
                self.row.add("GPR_WRITE")
        if self.cls == "sse" and self.rm_op and self.rm_op.msize == "16" and not self.unaligned:
            self.row.add("ALIGN")
        if self.fl["fw"] or self.fl["fu"]:
            self.row.add("FLAGS_WRITE")
        if self.special != "none":
            self.row.add("SPECIAL")
        if self.special == "maskmov":
            self.row.add("MASK_PARTIAL")
        scalar = {o.type for o in self.ops if o.where == "vec"} & set(SCALARS)
        if getattr(self, "lig", False) or (self.evex and scalar):
            self.row.add("SCALAR")
            self.dec.add("SCALAR")

    def exec_sizes(self):
        wide = set() if self.modes == {0} else {8}
        rule = self.size_rule
        if rule in BYTES:
            return {BYTES[rule]}
        if rule == "v" or rule == "z":
            return {2, 4} | (wide if rule == "v" else set())
        return {4} | wide

    def exec_name(self, size, shape):
        name = "exec_" + self.exec
        if "s" in self.by:
            name += f"_{size * 8}"
        if "m" in self.by:
            name += "_" + shape
        return name


def read_features(path):
    out = []
    for line in open(path, encoding="utf-8"):
        if m := re.match(r"X\((\w+),", line):
            out.append(m[1])
    return out


def read_table(path):
    rows, absent = [], set()
    for n, line in enumerate(open(path, encoding="utf-8"), 1):
        line = line.split("#")[0].rstrip()
        if not line:
            continue
        if line.startswith("absent "):
            absent |= set(line.split()[1:])
            continue
        try:
            head, encoding, attrs = (line.split("|") + ["", ""])[:3]
            words = head.split()
            rows.append(Row(n, words[0], words[1] if len(words) > 1 else "", encoding, attrs))
        except (TableError, ValueError, KeyError, IndexError) as e:
            sys.exit(f"{path}:{n}: {e}: {line}")
    return rows, absent


class Trees:
    """Decision trees over rows; equal subtrees are shared."""

    def __init__(self, path):
        self.path = path
        self.nodes, self.entries, self.known = [], [], {}

    def build(self, rows, depth=0):
        if not rows:
            return 0
        for d in range(depth, len(QUESTIONS)):
            name, width = QUESTIONS[d]
            if any(name in r.sets for r in rows):
                kids = tuple(self.build([r for r in rows if v in r.sets.get(name, range(width))],
                                        d + 1) for v in range(width))
                return kids[0] if len(set(kids)) == 1 else self.node(name, kids)
        if len(rows) > 1:
            where = ", ".join(f"line {r.line} ({r.mnemonic} {r.encoding})" for r in rows)
            sys.exit(f"{self.path}: the same bytes match {where}")
        return rows[0].id

    def node(self, name, kids):
        key = (name, kids)
        if key not in self.known:
            self.known[key] = len(self.nodes)
            self.nodes.append((name, len(self.entries)))
            self.entries.extend(kids)
        return 0x8000 + self.known[key]


def assign_ids(rows):
    used = {}
    for i, r in enumerate(rows, 1):
        r.id = i
        base = re.sub(r"\W", "_", r.mnemonic.split("/")[0])
        base += "".join("_" + re.sub(r"\W", "", o.text) for o in r.ops)
        base += "_evex" if r.evex else ""
        used[base] = used.get(base, 0) + 1
        r.ident = "INSN_" + base + (f"_{used[base]}" if used[base] > 1 else "")


def resolve_alts(rows, path):
    by_exec = {}
    for r in rows:
        by_exec.setdefault(r.exec, r)
    for r in rows:
        r.alt_id = 0
        if r.alt:
            if r.alt not in by_exec:
                sys.exit(f"{path}:{r.line}: else={r.alt}: no such row")
            r.alt_id = by_exec[r.alt].id


def check_features(rows, known, absent, path):
    for r in rows:
        for f in r.features + r.implied:
            if f not in known and f not in absent:
                sys.exit(f"{path}:{r.line}: feature {f} is neither in cpu_features.def nor absent")
        r.never = any(f in absent and f not in known for f in r.features) or r.exec == "ud"
        if r.never:
            r.exec, r.by, r.xlat = "ud", (), "interp"
            r.row.add("UD")


class Execs:
    """insn_execs[]: runs of entries shared by rows with the same exec and axes."""

    def __init__(self):
        self.slots, self.base = ["exec_ud"], {("ud", ()): 0}

    def bind(self, r):
        key = (r.exec, r.by)
        if key not in self.base:
            self.base[key] = len(self.slots)
            self.slots += ["exec_ud"] * ((4 if "s" in r.by else 1) * (3 if "m" in r.by else 1))
        for size in sorted(r.exec_sizes()) if "s" in r.by else (1,):
            for m, shape in enumerate("rml" if "m" in r.by else "r"):
                if "m" in r.by and not self.reachable(r, shape):
                    continue
                i = (size.bit_length() - 1 if "s" in r.by else 0) * (3 if "m" in r.by else 1) + m
                self.slots[self.base[key] + i] = r.exec_name(size, shape)
        return self.base[key]

    @staticmethod
    def reachable(r, shape):
        if shape == "r":
            return r.reg_possible
        return r.mem_possible and (shape == "m" or "LOCK" in r.row)


# --- output ---------------------------------------------------------------------------------------

def c_list(items, per_line=12):
    items = list(items)
    return "".join("\t" + ", ".join(str(x) for x in items[i:i + per_line]) + ",\n"
                   for i in range(0, len(items), per_line))


def bits(prefix, names):
    return " | ".join(prefix + n for n in sorted(names)) or "0"


HEAD = "/* Written by gen_insn.py from insn.tbl. */\n"


def write_ids(rows, out):
    out.write(HEAD + "#pragma once\n\nenum insn_id {\n\tINSN_bad,\n")
    for r in rows:
        out.write(f"\t{r.ident},\n")
    out.write("\tINSN_NR_IDS\n};\n")


def write_execs(execs, out):
    out.write(HEAD + '#pragma once\n\n#include "engine/soft/insn.h"\n\n')
    for name in sorted(set(execs.slots)):
        out.write(f"insn_exec {name};\n")


def write_stub(execs, out):
    out.write(HEAD + '#include "engine/soft/insn_exec.gen.h"\n\n')
    for name in sorted(set(execs.slots)):
        out.write(f"__attribute__((weak)) void {name}(struct cpu *cpu, const struct insn *in)\n"
                  "{\n\t(void)cpu;\n\t(void)in;\n\t__builtin_trap();\n}\n")


def dec_imm(r):
    kinds = [o.text for o in r.ops if o.text in IMMS or o.text == "I2b"]
    if any(o.kind == "OP_MOFFS" for o in r.ops):
        return "DEC_IMM_A"
    if any(o.kind == "OP_VEC_IS4" for o in r.ops):
        return "DEC_IMM_IS4"
    if kinds == ["Iw", "I2b"]:
        return "DEC_IMM_W_B"
    if kinds == ["Ib", "I2b"]:
        return "DEC_IMM_B_B"
    if len(kinds) > 1:
        sys.exit(f"line {r.line}: immediates {kinds}")
    return "DEC_" + IMMS[kinds[0]][0] if kinds else "DEC_IMM_NONE"


def dec_vlen(r):
    if r.vex or r.evex:
        if r.cls in ("k", "vexgpr"):
            return 0 if r.cls == "vexgpr" else 16
        if "SCALAR" in r.row:
            return 16
    return 0


def write_dec_rows(rows, execs, known, out):
    out.write("const struct dec_row dec_rows[] = {\n")
    out.write("\t{.feat = {DEC_FEAT_NONE, DEC_FEAT_NONE, DEC_FEAT_NONE}, .size = DEC_SIZE_V},\n")
    for r in rows:
        feats = [f"CPU_FEAT_{f}" for f in r.features + r.implied if f in known]
        if r.never:
            feats = []
        if len(feats) > 3:
            sys.exit(f"line {r.line}: more than three features")
        feats += ["DEC_FEAT_NONE"] * (3 - len(feats))
        flags = set(r.dec)
        flags |= {"BY_" + a.upper() for a in r.by}
        size = str(BYTES[r.size_rule]) if r.size_rule in BYTES else \
            "DEC_SIZE_" + r.size_rule.upper()
        msize = r.rm_op.msize if r.rm_op and r.rm_op.mem else "SIZE_NONE"
        if r.special in ("gather", "scatter", "xsave", "fxsave", "fpenv") or "HINT" in r.row:
            msize = "SIZE_NONE"
        prefix = r.sets.get("prefix")
        prefix = PREFIXES[next(iter(prefix))] if prefix and len(prefix) == 1 else 0
        out.write(f"\t{{{bits('DEC_', flags)}, {execs.bind(r)}, {r.alt_id},\n"
                  f"\t {{{', '.join(feats)}}}, {dec_imm(r)}, {size}, {msize}, {prefix:#x}, "
                  f"{r.elem}, {r.disp8n}, {dec_vlen(r)}}}, /* {r.mnemonic} */\n")
    out.write("};\n\n")


def write_rows(rows, known, out):
    out.write("const struct insn_row insn_rows[INSN_NR_IDS] = {\n"
              '\t{.name = "(bad)", .feature = -1, .attrs = ROW_UD},\n')
    for r in rows:
        ops = "".join(f"{{{o.kind}, {o.size}, {o.msize}, {o.access}, {o.fixed}}}, " for o in r.ops)
        feats = [f for f in r.features + r.implied if f in known]
        feature = f"CPU_FEAT_{feats[0]}" if feats else "-1"
        attrs = set(r.row)
        if r.vex:
            attrs.add("VEX")
        if r.evex:
            attrs.add("EVEX")
        out.write(f'\t{{"{r.mnemonic}", {{{ops}}}, {len(r.ops)}, CLASS_{r.cls.upper()}, '
                  f"SPECIAL_{r.special.upper()}, {r.elem}, {feature},\n\t {bits('ROW_', attrs)}, "
                  f"{r.fl['fr']:#x}, {r.fl['fw']:#x}, {r.fl['fu']:#x}, {r.fl['fw'] | r.fl['fc']:#x}, "
                  f"XLAT_{r.xlat.upper()}}},\n")
    out.write("};\n")


def roots(rows, trees, pick, nr_maps):
    out = []
    for mode in (0, 1):
        for m in range(nr_maps):
            for opcode in range(256):
                here = [r for r in rows if pick(r) and r.map == m and mode in r.modes
                        and opcode in r.opcodes()]
                out.append(trees.build(here))
    return out


def modrm_bitmap(rows):
    has = [[0] * 32 for _ in range(4)]
    for m in (2, 3):
        has[m] = [0xFF] * 32
    for r in rows:
        if not r.vex and not r.evex and r.modrm:
            for op in r.opcodes():
                has[r.map][op // 8] |= 1 << op % 8
    return sum(has, [])


def write_tables(rows, known, execs, path, out):
    trees = Trees(path)
    legacy = roots(rows, trees, lambda r: not r.vex and not r.evex, 4)
    vex = roots(rows, trees, lambda r: r.vex, 3)
    evex = roots(rows, trees, lambda r: r.evex, 5)
    out.write(HEAD + '#include "engine/cpu_model.h"\n#include "engine/soft/insn_exec.gen.h"\n'
              '#include "engine/soft/insn_rows.h"\n#include "engine/soft/insn_tables.h"\n\n')
    for name, dims, data in (("dec_legacy", "[2][4][256]", legacy), ("dec_vex", "[2][3][256]", vex),
                             ("dec_evex", "[2][5][256]", evex)):
        out.write(f"const uint16_t {name}{dims} = {{\n")
        n = int(dims[4])
        for mode in (0, 1):
            out.write("\t{\n")
            for m in range(n):
                i = (mode * n + m) * 256
                out.write("\t{\n" + c_list(data[i:i + 256]) + "\t},\n")
            out.write("\t},\n")
        out.write("};\n\n")
    m = modrm_bitmap(rows)
    out.write("const uint8_t dec_has_modrm[4][32] = {\n"
              + "".join("\t{\n" + c_list(m[i:i + 32]) + "\t},\n" for i in range(0, 128, 32))
              + "};\n\n")
    out.write("const struct tree_node tree_nodes[] = {\n"
              + "".join(f"\t{{TREE_{n.upper()}, {c}}},\n" for n, c in trees.nodes) + "};\n\n")
    out.write("const uint16_t tree_entries[] = {\n" + c_list(trees.entries) + "};\n\n")
    write_dec_rows(rows, execs, known, out)
    out.write("insn_exec *const insn_execs[] = {\n"
              + "".join(f"\t{s},\n" for s in execs.slots) + "};\n\n")
    write_rows(rows, known, out)


def main():
    table, features, outdir = sys.argv[1:4]
    known = read_features(features)
    rows, absent = read_table(table)
    assign_ids(rows)
    resolve_alts(rows, table)
    check_features(rows, known, absent, table)
    execs = Execs()
    with open(f"{outdir}/insn_ids.gen.h", "w", encoding="utf-8") as f:
        write_ids(rows, f)
    with open(f"{outdir}/insn_tables.gen.c", "w", encoding="utf-8") as f:
        write_tables(rows, known, execs, table, f)
    with open(f"{outdir}/insn_exec.gen.h", "w", encoding="utf-8") as f:
        write_execs(execs, f)
    with open(f"{outdir}/insn_stub.gen.c", "w", encoding="utf-8") as f:
        write_stub(execs, f)


if __name__ == "__main__":
    main()
