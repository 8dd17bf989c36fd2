"""Settings files, cluster files, scheduler files, certificates."""

from __future__ import annotations

from support.catalogue.fault import Fault, Make, fifo, file, folder, gone, link, plan, run

DEEP_TOML = "a = " + "[" * 5000 + "]" * 5000
DEEP_YAML = "[" * 5000 + "]" * 5000
DEEP_JSON = "[" * 100_000 + "]" * 100_000
BILLION_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, "
    f"*{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)  # fmt: skip

_TOML = [
    ("that breaks off", "model =", ("not valid TOML",)),
    ("that is no text", b"\xff\xfe", ("not valid TOML",)),
    ("with an unknown key", "colour = 1", ("colour", "not a setting")),
    ("with a word for a number", "overlap = 'half'", ("overlap", "half")),
    ("with a number for a path", "model = 3", ("model", "3")),
    ("with a list of lists for a path", "model = [['id.fake.toml']]", ("model",)),
    ("with a list for one path", "model = 'id.fake.toml'\nmask = ['m.zarr']", ("mask",)),
    ("with a table for a number", "[overlap]\na = 1", ("overlap",)),
    ("with threads of 2**70", f"threads = {2**70}", ("threads",)),
    ("with memory of 10**80", f"memory = {10**80}", ("memory",)),
    ("with memory of nan", "memory = nan", ("memory",)),
    ("with overlap of nan", "overlap = nan", ("overlap",)),
    ("with hang_seconds of inf", "hang_seconds = inf", ("hang_seconds",)),
    ("with a window of 2**63", f"window = [{2**63}, 8, 8]", ("window",)),
    ("with a window of words", "window = ['a', 'b', 'c']", ("window",)),
    ("with a window of one size", "window = [8]", ("window",)),
    ("with a window that is empty", "window = []", ("window",)),
    ("with a part of four", "part = '5/4'", ("part",)),
    ("with a flag that is a word", "strict = 'sometimes'", ("strict",)),
    ("nested 5000 deep", DEEP_TOML, ("not valid TOML",)),
    ("with keys nested 5000 deep", ".".join("a" * 5000) + " = 1", ("unet-engine.toml",)),
    ("with a number of 10000 digits", f"threads = {'9' * 10000}", ("unet-engine.toml",)),
    ("with a key twice", "overlap = 0.5\noverlap = 0.25", ("not valid TOML",)),
    ("with a NUL in a path", 'model = "id\\u0000.fake.toml"', ("model",)),
    ("that is empty of a model", "model = ''", ("model",)),
    *[
        (f"with {key} of {value}", f"model = 'id.fake.toml'\n{key} = {value}", (key,))
        for key, value in (
            ("level", "true"),
            ("timepoint", "false"),
            ("threads", "true"),
            ("overlap", "false"),
            ("memory", "true"),
            ("replace_nonfinite", "true"),
            ("folds", "true"),
            ("weights", "[1, true]"),
            ("tta", "['mirror']"),
            ("grid", "'both'"),
            ("blend", "3"),
            ("input_channels", "[[0]]"),
            ("image", "[]"),
        )
    ],
    ("with dates", "model = 2026-01-01", ("model",)),
]

_TOML_PLACES: list[tuple[str, Make, tuple[str, ...]]] = [
    ("that is a FIFO", fifo("unet-engine.toml"), ("unet-engine.toml", "no regular file")),
    ("that is a link to /dev/zero", link("unet-engine.toml", "/dev/zero"), ("unet-engine.toml", "no regular file")),
]

_CLUSTER = [
    ("that is empty", "", ("holds no keys",)),
    ("that is a word", "slurm", ("holds no keys",)),
    ("that is a list", "- type: slurm", ("holds no keys",)),
    ("that is no YAML", "type: [", ("not valid YAML",)),
    ("that is no text", b"\xff\xfe\x00", ("not valid YAML",)),
    ("with a tab", "type:\tslurm\n\tjobs: 1", ("not valid YAML",)),
    ("with an unknown key", "type: slurm\njobs: 1\ncores: 1\nmemory: 1GiB\ncolour: 1", ("colour",)),
    ("of an unknown kind", "type: condor\njobs: 1\ncores: 1\nmemory: 1GiB", ("type", "condor")),
    ("without jobs", "type: slurm\ncores: 1\nmemory: 1GiB", ("jobs",)),
    ("with no jobs", "type: slurm\njobs: 0\ncores: 1\nmemory: 1GiB", ("jobs",)),
    ("with jobs and adaptive", "type: slurm\njobs: 1\nadaptive: {maximum: 2}\ncores: 1\nmemory: 1GiB", ("jobs",)),
    (
        "with adaptive upside down",
        "type: slurm\nadaptive: {minimum: 3, maximum: 2}\ncores: 1\nmemory: 1GiB",
        ("minimum",),
    ),
    ("with no memory to speak of", "type: slurm\njobs: 1\ncores: 1\nmemory: 0", ("memory",)),
    ("with memory in words", "type: slurm\njobs: 1\ncores: 1\nmemory: lots", ("memory",)),
    ("with memory of 10**80", f"type: slurm\njobs: 1\ncores: 1\nmemory: {10**80}", ("memory",)),
    ("with no cores", "type: slurm\njobs: 1\ncores: 0\nmemory: 1GiB", ("cores",)),
    ("with jobs of 10**30", f"type: slurm\njobs: {10**30}\ncores: 1\nmemory: 1GiB", ("jobs",)),
    ("with cores in words", "type: slurm\njobs: 1\ncores: two\nmemory: 1GiB", ("cores",)),
    ("with a clock without quotes", "type: slurm\njobs: 1\ncores: 1\nmemory: 1GiB\nwalltime: 12:00:00", ("walltime",)),
    ("nested 5000 deep", DEEP_YAML, ("not valid YAML",)),
    ("of a billion laughs", BILLION_LAUGHS, ("c.yaml",)),
    ("that makes objects", "!!python/object/apply:os.system ['true']", ("not valid YAML",)),
    ("of two documents", "a: 1\n---\nb: 2", ("not valid YAML",)),
    ("with a key that is a list", "? [a, b]\n: 1", ("c.yaml",)),
    ("with a key that is a number", "1: 2\ntype: slurm\njobs: 1\ncores: 1\nmemory: 1GiB", ("c.yaml",)),
    ("with a number of 10000 digits", f"type: slurm\njobs: {'9' * 10000}", ("c.yaml",)),
]

_CLUSTER_PLACES: list[tuple[str, Make | None, tuple[str, ...]]] = [
    ("that is not there", None, ("no such file",)),
    ("that is a folder", folder("c.yaml"), ("c.yaml", "cannot be read")),
    ("that is a FIFO", fifo("c.yaml"), ("c.yaml", "no regular file")),
    ("that is a link to itself", link("c.yaml", "c.yaml"), ("c.yaml", "cannot be read")),
]

_SCHEDULER = [
    ("that is no JSON", "{", ("s.json",)),
    ("that is no text", b"\xff\xfe\x00", ("s.json",)),
    ("without an address", "{}", ("s.json", "address")),
    ("that is a list", "[1]", ("s.json",)),
    ("that is null", "null", ("s.json",)),
    ("nested 100000 deep", DEEP_JSON, ("s.json",)),
    ("with a number for an address", '{"address": 3}', ("s.json",)),
    ("with null for an address", '{"address": null}', ("s.json",)),
    ("with a list for an address", '{"address": ["tcp://127.0.0.1:1"]}', ("s.json",)),
    ("with a path for an address", '{"address": "/etc/passwd"}', ("s.json",)),
]

_SCHEDULER_PLACES: list[tuple[str, Make | None, tuple[str, ...]]] = [
    ("that is not there", None, ("no such file",)),
    ("that is a folder", folder("s.json"), ("s.json", "cannot be read")),
    ("that is a FIFO", fifo("s.json"), ("s.json", "no regular file")),
]

_ADDRESSES = [
    ("tcp://127.0.0.1:1", ("no scheduler listens there",)),
    ("127.0.0.1:1", ("no scheduler listens there",)),
    ("tcp://127.0.0.1", ("tcp://node7:8786",)),
    ("tcp://127.0.0.1:99999", ("tcp://node7:8786",)),
    ("tcp://127.0.0.1:²", ("tcp://node7:8786",)),
    ("tcp://127.0.0.1:٨", ("tcp://node7:8786",)),
    ("tcp://127.0.0.1:0", ("tcp://node7:8786",)),
    ("tcp://127.0.0.1:-1", ("tcp://node7:8786",)),
    ("tcp://:8786", ("tcp://node7:8786",)),
    ("tcp://a b:8786", ("tcp://node7:8786",)),
    ("tcp://no-such-host.invalid:8786", ("host",)),
    (f"tcp://{'a' * 300}:8786", ("tcp://",)),
    ("http://127.0.0.1:8786", ("http://",)),
    ("inproc://127.0.0.1:8786", ("inproc://",)),
    ("localhost", ("tcp://node7:8786",)),
    ("tls://127.0.0.1:1", ("--tls-ca",)),
]

_DASHBOARDS = [
    ("8787", 2), ("127.0.0.1:", 2), ("127.0.0.1:²", 2), ("127.0.0.1:99999", 2), ("127.0.0.1:-1", 2),
    ("no-such-host.invalid:0", 10), ("127.0.0.1:x", 2),
    ("256.1.1.1:0", 10), (f"127.0.0.1:{'9' * 400}", 2), (f"{'a' * 300}:80", 10),
]  # fmt: skip

_TLS: list[tuple[str, Make | None]] = [
    ("that are not there", None),
    ("that are empty", file("p.pem")),
    ("that are no PEM", file("p.pem", "hello")),
    ("that are folders", folder("p.pem")),
    ("that are FIFOs", fifo("p.pem")),
]

FAULTS = [
    *[Fault(f"a settings file {name}", run(model=None), 2, says, file("unet-engine.toml", text)) for name, text, says in _TOML],
    *[Fault(f"a settings file {name}", run(model=None), 2, says, make) for name, make, says in _TOML_PLACES],
    *[Fault(f"a cluster file {name}", run(cluster="c.yaml"), 2, says, file("c.yaml", text)) for name, text, says in _CLUSTER],
    *[Fault(f"a cluster file {name}", run(cluster="c.yaml"), 2, says, make) for name, make, says in _CLUSTER_PLACES],
    *[Fault(f"a scheduler file {name}", run(scheduler="s.json"), 10, says, file("s.json", text)) for name, text, says in _SCHEDULER],
    *[Fault(f"a scheduler file {name}", run(scheduler="s.json"), 10, says, make) for name, make, says in _SCHEDULER_PLACES],
    *[Fault(f"a scheduler at {address[:40]}", run(scheduler=address), 10, says, slow=address.endswith(".1:1")) for address, says in _ADDRESSES],
    *[Fault(f"a dashboard at {where[:40]}", run(workers=1, dashboard=where), code, ("--dashboard",)) for where, code in _DASHBOARDS],
    *[Fault(f"certificates {name}", run(scheduler="tls://127.0.0.1:1", tls_ca="p.pem", tls_cert="p.pem", tls_key="p.pem"), 10, ("p.pem",), make)
      for name, make in _TLS],
    Fault("a plan whose settings file is a FIFO", plan(), 2, ("no regular file",), fifo("unet-engine.toml")),
    Fault("a settings file in a folder that is gone", run(), 3, ("scan.zarr",), gone("scan.zarr")),
]  # fmt: skip
