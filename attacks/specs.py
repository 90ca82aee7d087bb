"""Spec text that would run code, hang or exhaust memory through gw.parse: a spec is read, never run.

Must get ConfigError, and no code may run.
"""

import warnings

import forge
from forge import escaped, refused

import gradwire as gw

RAN: list[str] = []

TEXTS = [
    "__import__('os').system('true')",
    "exec('import specs')",
    "eval('1')",
    "print(1)",
    "open('/etc/passwd')",
    "(lambda: topk(0.1))()",
    "[topk(0.1) for _ in (1,)][0]",
    "topk.__class__(0.1)",
    "topk(0.1).__init__()",
    "topk(density=(x := 0.1))",
    "topk(*[0.1])",
    "topk(**{'density': 0.1})",
    "topk(0.1); topk(0.1)",
    "topk(0.1)\nimport os",
    "topk(f'{__import__(\"os\")}')",
    "topk(0.1) if True else topk(0.2)",
    "await topk(0.1)",
    "topk(10 ** 10 ** 10)",
    "topk('a' * 10 ** 10)",
    "topk(1e999)",
    "topk(nan)",
    "topk(-0.1)",
    "topk(0.1j)",
    "topk(True)",
    "topk({}, [], ())",
    "topk(b'0.1')",
    "topk(0.1, 0.1, 0.1, 0.1)",
    "topk(0.1, density=0.1)",
    "topk(0.1, self=1)",
    "Pipeline((topk(0.1),))",
    "Compressor()",
    "Stage()",
    "uniform(2 ** 70)",
    "uniform(0x" + "f" * 9000 + ")",
    "topk(0x" + "f" * 9000 + ")",
    "uniform(" + "9" * 9000 + ")",
    "topk(num_bytes=-0x" + "f" * 9000 + ")",
    "uniform(4, scope=-0x" + "f" * 5000 + ")",
    "ef(" * 200 + "topk(0.1)" + ")" * 200,
    "ef(" * 3000,
    "|".join(["fp16()"] * 1500),
    "topk(" + "[" * 150 + "]" * 150 + ")",
    "topk(" + "(" * 5000,
    "topk(" + "-" * 9000 + "1)",
    "topk(" + "not " * 2000 + "1)",
    "x" * 9999,
    "topk(0.1)" + " " * 20_000,
    "\0",
    "topk('\0')",
    "topk('\ud800')",
    "\uff54\uff4f\uff50\uff4b(0.1, \uff53elf=1)",
    "",
    "#",
    "'topk(0.1)'",
    "0.1",
    "None",
]


def attacks() -> None:
    """Try each."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for text in TEXTS:
            refused(repr(text[:60]), lambda t=text: gw.parse(t), gw.ConfigError, max_bytes=30_000_000)
    for other in (None, 7, b"topk(0.1)", ["topk(0.1)"], object()):
        refused(repr(other)[:20], lambda o=other: gw.parse(o), gw.ConfigError)
    if RAN:
        escaped(f"code ran: {RAN}")


if __name__ == "__main__":
    forge.main(attacks)
