"""Opening a model file: its format, its hash and its `ModelSpec`, without loading PyTorch or building an engine.

.onnx          spec in the ONNX metadata, else in a TOML of the same name beside it, else from the graph's shapes
.pt2           torch.export archive, spec as extra file
.pt .ts        TorchScript archive, spec as extra file
.fake.toml     no network at all: see `unet_engine.backends.fake`
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from unet_engine.errors import ModelError, SettingsError
from unet_engine.model import attachments, trust
from unet_engine.model import credit as credits
from unet_engine.model.ending import UNPROVED, Ending, applied_again
from unet_engine.model.normalization import Normalization
from unet_engine.model.onnx_file import read_onnx
from unet_engine.model.onnx_rewrite import INTEGERS, Rewriting
from unet_engine.model.spec import ACTIVATION_OF, Activation, Channels, ModelSpec, read_toml
from unet_engine.model.torch_file import read_torch
from unet_engine.model.verdict import Verdict
from unet_engine.paths import check_file

Format = Literal["onnx", "pt2", "torchscript", "fake"]
_SUFFIXES: dict[str, Format] = {
    ".onnx": "onnx",
    ".pt2": "pt2",
    ".pt": "torchscript",
    ".ts": "torchscript",
    ".fake.toml": "fake",
}
VERDICTS = "verdicts"
NETWORK = "network."
"""Keys of attachments: all verdicts as JSON, and per attached network this with its SHA-256, in base64."""
_VERDICTS = TypeAdapter(tuple[Verdict, ...])


@dataclass(frozen=True)
class ModelFile:
    path: Path
    format: Format
    sha256: str
    """Of the network, its spec, and which output of it is taken in which form; what quantising attaches does not change
    it."""
    spec: ModelSpec
    verdicts: tuple[Verdict, ...] = ()
    outside: tuple[str, ...] = ()
    """Files beside it, or in folders there, that hold weights."""
    ends_in: str = ""
    """What in the graph told the spec's activation, e.g. "the network ends in Sigmoid"; empty where it was said, or
    guessed."""
    proved: Ending = UNPROVED
    """What the graph proves of the outputs, as far as it was looked at."""
    rewriting: Rewriting | None = None
    """What of an ONNX graph is changed before a library sees it."""
    saved_batch: int | None = None
    """The batch that an ONNX graph was saved for; None where it takes any."""
    head: str | None = None
    """The output that was asked for by name."""
    notes: tuple[str, ...] = ()
    """What people should know of how the graph is understood."""
    ran: bool = False
    """Whether a window was run to see what the graph gives."""
    described: bool = True
    """Whether what the outputs are was said, in the file or beside it, or follows from an ArgMax behind them."""
    output: str = ""
    """Name of the output in a graph without a spec."""
    guessed: bool = False
    """Whether the activation was neither said nor proved."""
    credit: credits.Credit | None = None
    """Whose network it is, where an import knew."""
    trusted: bool = False
    """Whether the user trusts a file that runs code: known where it was opened, and taken along to other processes."""

    @property
    def runs_code(self) -> bool:
        """Whether opening or running it may do anything a program may."""
        return self.format in trust.RUNS_CODE

    def check_trust(self) -> None:
        """Raise `ModelError` where it runs code and the user does not trust it."""
        if not self.trusted:
            trust.check(self.path, self.format, self.sha256)

    def trust(self) -> ModelFile:
        """The same, trusted from now on: by this process, and as far as the user's folder can be written, by all."""
        if self.runs_code:
            trust.trust(self.path, self.sha256)
        return replace(self, trusted=True)

    @property
    def takes_integers(self) -> bool:
        """Whether its own input is of whole numbers."""
        return self.rewriting is not None and self.rewriting.takes in INTEGERS

    @property
    def contradiction(self) -> str:
        """Why the spec's activation cannot be that of these outputs, and what to do; empty where nothing speaks against
        it."""
        return applied_again(self.proved, self.spec.activation, self.spec.channels_out)

    def normalized(self, how: str | None) -> ModelFile:
        """The model fed as ``--normalize`` says; as it promises where that is None. Raises `SettingsError` for other
        words, and where it is said for another number of channels."""
        if not how:
            return self
        normalization = Normalization.parse(how)
        try:
            normalization.check_channels(self.spec.channels_in)
        except ValueError as error:
            raise SettingsError(f"--normalize {how}: {error}") from error
        spec = self.spec.model_copy(update={"normalization": normalization})
        return replace(self, spec=spec)

    def activated(self, activation: Activation | None) -> ModelFile:
        """The model whose outputs are what ``--activation`` says; as it promises where that is None. Raises
        `SettingsError` where the model cannot be of that kind."""
        if activation is None:
            return self
        try:
            spec = ModelSpec.model_validate({**self.spec.model_dump(), "activation": activation})
        except ValidationError as error:
            said = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise SettingsError(f"--activation {activation} does not fit {self.path}: {said}") from error
        return replace(self, spec=spec, ends_in="", guessed=False)

    def meant(self, channels: Channels | None) -> ModelFile:
        """The model whose channels are what ``--channels`` says; as it promises where that is None. An activation that
        was guessed follows. Raises `SettingsError` where the model cannot be of that kind."""
        if channels is None:
            return self
        follows = ACTIVATION_OF.get(channels) if self.guessed else None
        said = {"activation": follows} if follows else {}
        try:
            spec = ModelSpec.model_validate({**self.spec.model_dump(), **said, "channels": channels})
        except ValidationError as error:
            why = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise SettingsError(f"--channels {channels} does not fit {self.path}: {why}; see --activation") from error
        return replace(self, spec=spec)


def open_model(
    path: str | Path,
    window: Sequence[int] | None = None,
    activation: Activation | None = None,
    head: str | None = None,
) -> ModelFile:
    """Read what the model at `path` promises. `window` is needed, and used, only where the file does not fix a size
    itself. `activation` wins over what the file says. `head`: name of the output that is wanted, where there are
    several; see `unet_engine.model.outputs.choose`.

    Raises `SettingsError` where the model cannot be of that kind, and `ModelError` where the file is missing, corrupt,
    of no known format, or says too little.
    """
    path = Path(path)
    if not path.exists():
        raise ModelError(f"{path} does not exist; give a model file with --model (.onnx, .pt2, .pt)")
    if path.is_dir():
        raise ModelError(f"{path} is a folder; give a model file with --model (.onnx, .pt2, .pt)")
    kind = _format(path)
    try:
        check_file(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}; give a model file with --model") from error
    if kind == "onnx":
        return _onnx(path, tuple(window) if window else None, activation, head)
    sha256 = _hash([path], kind)
    if kind == "fake":
        spec = ModelSpec.written(read_toml(path).get("spec", {}), path)
        return ModelFile(path, kind, sha256, spec).activated(activation)
    found = read_torch(path, kind, activation, head)
    return ModelFile(
        path, kind, sha256, found.spec, ends_in=found.ends_in, proved=found.proved,
        saved_batch=found.saved_batch, head=found.head, guessed=found.guessed, trusted=trust.is_trusted(sha256),
    ).activated(activation)  # fmt: skip


def _onnx(path: Path, window: tuple[int, ...] | None, activation: Activation | None, head: str | None) -> ModelFile:
    found = read_onnx(path, window, activation, head)
    return ModelFile(
        path,
        "onnx",
        _hash([path, *found.weights], "onnx", found.rewriting.text),
        found.spec,
        _verdicts(path),
        tuple(str(f.relative_to(path.parent)) for f in found.weights),
        found.ends_in,
        found.proved,
        found.rewriting,
        found.saved_batch,
        head,
        found.notes,
        ran=found.ran,
        described=found.described,
        output=found.output,
        guessed=not found.described and not found.ends_in,
        credit=credits.read(path),
    ).activated(activation)


def is_model(path: str | Path) -> bool:
    """Whether `path` is called like a model file."""
    return str(path).lower().endswith(tuple(_SUFFIXES))


def _format(path: Path) -> Format:
    for suffix, kind in _SUFFIXES.items():
        if path.name.lower().endswith(suffix):
            return kind
    raise ModelError(f"{path} is called like no model file; give .onnx, .pt2, .pt or .ts")


def _hash(files: Sequence[Path], kind: Format, changes: str = "") -> str:
    """Of all bytes of the files, one after the other, but for what is attached to the first; and of what is changed of
    them before they run."""
    digest = hashlib.sha256()
    for i, path in enumerate(files):
        try:
            for piece in attachments.own_bytes(path) if kind == "onnx" and i == 0 else _pieces(path):
                digest.update(piece)
        except OSError as error:
            raise ModelError(
                f"{path} cannot be read: {error.strerror}; restore it or correct its permissions"
            ) from error
    digest.update(changes.encode())
    return digest.hexdigest()


def hash_of(path: Path) -> str:
    """SHA-256 of a file that is no ONNX, as `ModelFile` has it."""
    return _hash([path], "pt2")


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(2**20):
            yield piece


# --- what quantising attaches ---


def _verdicts(path: Path) -> tuple[Verdict, ...]:
    """Those in the file; none where another version of the engine wrote them, which then is as if nothing had been
    judged."""
    text = attachments.read(path, VERDICTS)
    try:
        return _VERDICTS.validate_json(text) if text else ()
    except ValidationError:
        return ()


def attached_network(model: ModelFile, sha256: str) -> bytes:
    """The attached network of that hash. Raises `ModelError` where it is missing or not what was judged."""
    text = attachments.read(model.path, NETWORK + sha256)
    data = base64.b64decode(text) if text else b""
    if hashlib.sha256(data).hexdigest() != sha256:
        state = "is damaged" if text else "is missing"
        raise ModelError(
            f"{model.path}: the network {sha256[:12]} that was judged {state}; run unet-engine quantize again"
        )
    return data


def with_attachments(model: ModelFile, target: Path, verdicts: Sequence[Verdict], networks: dict[str, bytes]) -> None:
    """Write the model to `target` with these verdicts and, of its networks and `networks` (by hash), those that passed.

    Networks that no verdict permits to run would only make the file larger.
    """
    needed = dict.fromkeys(v.network for v in verdicts if v.network and (v.passed or v.emulated))
    values = {VERDICTS: _VERDICTS.dump_json(tuple(verdicts))}
    for sha256 in needed:
        data = networks[sha256] if sha256 in networks else attached_network(model, sha256)
        values[NETWORK + sha256] = base64.b64encode(data)
    if (said := attachments.read(model.path, credits.KEY)) is not None:
        values[credits.KEY] = said
    attachments.attach(model.path, target, values)
