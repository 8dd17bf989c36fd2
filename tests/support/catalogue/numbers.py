"""Numbers, words and their combinations on the command line."""

from __future__ import annotations

from support.catalogue.fault import Fault, bench, export, plan, quantize, run

BIG = "9" * 400
BEYOND = str(2**64 + 8)


def _option(name: str, value: str, *says: str) -> Fault:
    """An option of `run` with a value that makes no sense."""
    shown = name.replace("_", "-")
    short = value if len(value) < 24 else f"{value[:6]}-of-{len(value)}"
    return Fault(f"run --{shown} {short or 'empty'}", run(**{name: value}), 2, (f"--{shown}", *says))


_RUN = [
    *[("overlap", v) for v in ("half", "1", "1.5", "-0.1", "nan", "inf", "-inf", "1e400", "0.5,0.5", "½", "", "0x1", "50%")],
    *[("overlap_tolerance", v) for v in ("0", "-1", "2", "nan", "inf", "x", "")],
    *[("window", v) for v in ("abc", "8", "0,8,8", "-8,8,8", "8,,8", "", "8,8,8,8", "²,8,8", "٨,٨,٨", "8.0,8,8", "8;8;8", "1e3,8,8", "0x8,8,8",
                              f"{BEYOND},8,8", f"{BIG},8,8", "8,8,8,", "½,8,8", "８,８,８")],
    *[("threads", v) for v in ("0", "-1", "two", "1.5", "", "²", "4000", BEYOND, BIG, "1e3", "nan")],
    *[("workers", v) for v in ("0", "-1", "two", "1.5", "", "²", "4000000", BEYOND, BIG)],
    *[("gpus", v) for v in ("0", "-2", "all", "1.5", "", "²")],
    *[("batch", v) for v in ("0", "-1", "x", "1.5", BIG)],
    *[("memory", v) for v in ("lots", "0", "-5GiB", "1.2.3GiB", "1e999", "", "²GiB", "9" * 40, "9" * 40 + "GiB", BIG, "1e99", "8 Gigabyte", "nan",
                              "inf", "8XiB", "٨GiB", "0x8")],
    *[("part", v) for v in ("0/4", "5/4", "2", "1/0", "-1/4", "1/-4", "a/b", "1/4/4", "", "²/4", "1/²", "١/٤", "1.0/4", f"1/{BEYOND}", f"1/{BIG}",
                            f"{BIG}/{BIG}")],
    *[("roi", v) for v in ("", "3", "0:8", "0:8,0:8,0:8,0:8", "a:b,:,:", "-4:8,:,:", "8:4,:,:", ":,4:4,:", ":,:,0:41", "²:8,:,:", "٠:٨,:,:",
                           f"0:{BEYOND},:,:", f"{BIG}:,:,:", "0:8:2,:,:", "0.0:8,:,:", ":,:", "0-8,:,:", "0:8,:,:,")],
    *[("replace_nonfinite", v) for v in ("x", "", "1,0")],
    *[("hang_seconds", v) for v in ("0", "-1", "nan", "x", "")],
    *[("normalize", v) for v in ("unit", "percentile:99", "range:5,5", "range:9,1", "range:nan,1", "percentile:-1,50", "percentile:0,101",
                                 "range:1,2,3", "range:", "zscore:1,2", "range:a,b", "none:0,1", "percentile:nan,99",
                                 "range:²,9")],
    *[("blend", v) for v in ("linear", "", "GAUSSIAN")],
    *[("padding", v) for v in ("wrap", "", "0")],
    *[("output", v) for v in ("mask", "", "label")],
    *[("dtype", v) for v in ("int8", "", "uint8", "float64")],
    *[("precision", v) for v in ("fp8", "", "FP32", "32")],
    *[("activation", v) for v in ("relu", "", "softmax2")],
    *[("axes", v) for v in ("",)],
    *[("device", v) for v in ("",)],
    *[("protocol", v) for v in ("udp", "", "ucx")],
    *[("dashboard", v) for v in ("",)],
    *[("out", v) for v in ("", " ")],
    *[("model", v) for v in ("", " ")],
    *[("in", v) for v in ("", " ")],
    *[("mask", v) for v in ("", " ")],
    *[("tta", v) for v in ("", "mirror:xx", "mirror:w", "MIRROR", "mirror+none", "turns+mirror", "none,turns")],
    *[("folds", v) for v in ("", ",", "1", "all,0", "²", "9" * 5000)],
    *[("weights", v) for v in ("", ",", "1,1", "0", "-1", "nan", "inf", "1e308", "1e-320", "²", "9" * 5000)],
    *[("grid", v) for v in ("", "both", "SCAN")],
    *[("level", v) for v in ("", "-1", "x", "1.5", "²", BEYOND)],
    *[("timepoint", v) for v in ("", "-1", "x", "1.5", "²", BEYOND)],
    *[("image", v) for v in ("", " ")],
    *[("input_channels", v) for v in ("", " ")],
]  # fmt: skip

_USAGE = [
    ("run-without-anything", ("run",), ("--in",)),
    ("no-such-command", ("walk",), ("walk",)),
    ("no-such-option", run(axe="zyx"), ("--axe",)),
    ("a-stray-argument", run("stray"), ("stray",)),
    ("an-option-without-its-value", ("run", "--in"), ("--in",)),
    ("info-of-nothing", ("info",), ("PATH",)),
    ("info-of-two", ("info", "scan.zarr", "scan.zarr"), ("scan.zarr",)),
    ("finish-of-nothing", ("finish",), ("OUT",)),
    ("demo-without-a-folder", ("demo",), ("DIR",)),
    ("resume-and-overwrite", run("--resume", "--overwrite"), ("--resume", "--overwrite")),
    ("gpus-and-device", run(gpus=1, device="cpu"), ("--gpus", "--device")),
    ("gpus-and-workers", run(gpus=2, workers=2), ("--gpus", "--workers")),
    ("workers-and-scheduler", run(workers=2, scheduler="tcp://127.0.0.1:1"), ("--workers", "--scheduler")),
    ("scheduler-and-cluster", run(scheduler="tcp://127.0.0.1:1", cluster="c.yaml"), ("--scheduler", "--cluster")),
    ("part-and-overwrite", run("--overwrite", part="1/2"), ("--overwrite", "--part")),
    ("one-of-three-tls-files", run(tls_ca="ca.pem"), ("--tls-ca", "--tls-cert", "--tls-key")),
    ("logits-in-uint8", run(output="logits", dtype="uint8"), ("float32",)),
    ("overlap-auto-with-blend", run(overlap="auto", blend="crop"), ("--blend",)),
    ("tolerance-without-auto", run(overlap_tolerance="0.9"), ("--overlap auto",)),
    ("no-model", run(model=None), ("--model",)),
    ("a-flag-with-a-value", run("--strict=maybe"), ("--strict",)),
    ("export-without-out", ("export", "net.onnx"), ("--out",)),
    ("quantize-without-a-volume", ("quantize", "net.onnx"), ("--calibrate",)),
]

_OTHERS = [
    *[
        (f"run --device {v}", run(device=v, model="net.onnx"), ("--device",))
        for v in ("tpu", "cuda:x", "cuda:²", "cuda:-1", "cuda:0,", "cuda:1.5")
    ],
    *[
        (f"bench --seconds {v}", bench(seconds=v), ("--seconds",))
        for v in ("inf", "-inf", "nan", "-1", "0", "x", "", "1e400")
    ],
    *[(f"bench --threads {v}", bench(threads=v), ("--threads",)) for v in ("0", "-1", "4000", "x", BEYOND)],
    *[(f"bench --overlap {v}", bench(overlap=v), ("--overlap",)) for v in ("1", "-1", "nan", "inf", "x")],
    *[
        (f"bench --batches {v}", bench(batches=v), ("--batches",))
        for v in ("0", "-1", "a", "1,,x", "²", "1.5", BIG[:40])
    ],
    *[
        (f"bench --windows {v}", bench(windows=v), ("--windows",))
        for v in ("0,8,8", "8", "a", "8,8,8,8", "²,8,8", f"{BEYOND},8,8", "")
    ],
    *[(f"bench --precision {v}", bench(precision=v), ("--precision",)) for v in ("fp8", "fp32,fp8")],
    *[(f"quantize --seed {v}", quantize(seed=v), ("--seed",)) for v in ("-1", "x", "1.5", "²", "")],
    *[(f"quantize --windows {v}", quantize(windows=v), ("--windows",)) for v in ("1", "0", "-4", "x", BEYOND)],
    *[(f"quantize --held-out {v}", quantize(held_out=v), ("--held-out",)) for v in ("1", "-4", "x", BEYOND)],
    *[(f"quantize --max-error {v}", quantize(max_error=v), ("--max-error",)) for v in ("-1", "nan", "x", "-inf")],
    *[
        (f"quantize --min-agreement {v}", quantize(min_agreement=v), ("--min-agreement",))
        for v in ("-1", "2", "nan", "x", "inf")
    ],
    *[
        (f"quantize --min-dice {v}", quantize(min_dice=v), ("--min-dice",))
        for v in ("-1", "2", "nan", "x", "nosuch=0.9", "=", "inf")
    ],
    *[(f"quantize --threads {v}", quantize(threads=v), ("--threads",)) for v in ("0", "-1", "4000", "x", BEYOND)],
    *[
        (f"quantize --window {v}", quantize(window=v), ("--window",))
        for v in ("a", "0,8,8", "8,8,8,8", f"{BEYOND},8,8")
    ],
    *[(f"export --channels {v}", export(channels=v), ("--channels",)) for v in ("0", "-1", "x", BEYOND)],
    *[
        (f"export --spacing {v}", export(spacing=v), ("--spacing",))
        for v in ("a", "1,nan,1", "0,1,1", "-1,1,1", "inf,1,1", "")
    ],
    *[(f"export --window {v}", export(window=v), ("--window",)) for v in ("a", "0,8,8", "²,8,8", f"{BEYOND},8,8")],
    *[(f"export --background {v}", export(background=v), ("--background",)) for v in ("x", "nan", "inf")],
    *[
        (f"info --window {v}", ("info", "net.onnx", f"--window={v}"), ("--window",))
        for v in ("a", "0,8,8", "²,8,8", f"{BEYOND},8,8", "8")
    ],
    *[(f"plan --memory {v}", plan(memory=v), ("--memory",)) for v in ("-1", "9" * 40, "x")],
    *[(f"plan --part {v}", plan(part=v), ("--part",)) for v in ("0/1", "9/8", f"1/{BIG}")],
]

_MACHINE = [
    ("export --spacing of two axes", export(spacing="1,1"), 2, ("spacing has 2 entries", "3 axes")),
    *[(f"bench --devices {v}", bench(devices=v), 6, ("--devices",)) for v in ("tpu", "cuda:x")],
    ("bench --backend caffe", bench(backend="caffe"), 6, ("caffe",)),
    ("run --backend caffe", run(backend="caffe", model="net.onnx"), 6, ("caffe", "openvino")),
    ("run --backend pytorch", run(backend="pytorch", model="net.onnx"), 6, ("net.onnx",)),
    ("run --precision int8", run(precision="int8", model="net.onnx"), 6, ("int8", "quantize")),
    ("run --workers 1000", run(workers=1000, memory="8GiB"), 7, ("--workers 1000", "--memory")),
    ("run --memory 1KiB", run(memory="1KiB"), 7, ("--memory",)),
    ("run --window 40000³", run(window="40000,40000,40000"), 7, ("--window",)),
    ("run --window 65536³", run(window="65536,65536,65536"), 7, ("--window",)),
    ("run --level of an array", run(level=1), 3, ("--level", "scan.zarr")),
    ("run --image of an array", run(image="A/1/0"), 3, ("--image", "scan.zarr")),
    ("run --timepoint of a volume without time", run(timepoint=1), 3, ("--timepoint 1", "scan.zarr")),
    *[
        (f"run --input-channels {v[:9]}", run(input_channels=v), 3, ("--input-channels", "scan.zarr"))
        for v in ("1", ",", "DAPI", "²", "-1", "9" * 5000)
    ],
    *[
        (f"run --model {v}", run(model=v), 5, (f"--model {v}", "comma"))
        for v in (",", "net.onnx,", ",net.onnx", "net.onnx,,net.onnx")
    ],
    ("run --model of two kinds", run(model="net.onnx,id.fake.toml"), 5, ("net.onnx", "id.fake.toml", "formats")),
    ("run --weights that overflow", run(model="net.onnx,net.onnx", weights="1e308,1e308"), 2, ("--weights",)),
    ("import of nothing", ("import", "--out=q.onnx"), 2, ("SOURCE",)),
    ("import without --out", ("import", "scan.zarr"), 2, ("--out",)),
    ("import of what is not there", ("import", "missing", "--out=q.onnx"), 5, ("missing", "does not exist")),
    ("import of a volume", ("import", "scan.zarr", "--out=q.onnx"), 5, ("scan.zarr", "--list")),
    ("run --roi of another rank", run(roi="0:8,0:8"), 2, ("--roi", "zyx")),
]

FAULTS = [
    *[Fault(name, command, code, says) for name, command, code, says in _MACHINE],
    *[_option(name, value) for name, value in _RUN],
    *[Fault(name, command, 2, says) for name, command, says in (*_USAGE, *_OTHERS)],
]
