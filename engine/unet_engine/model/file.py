"""Opening a model file: its format, its hash and its `ModelSpec`, without loading PyTorch or building an engine.

.onnx          spec in the ONNX metadata, else in a TOML of the same name beside it, else from the graph's shapes
.pt2           torch.export archive, spec as extra file
.pt .ts        TorchScript archive, spec as extra file
.fake.toml     no network at all: see `unet_engine.backends.fake`
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from unet_engine.errors import ModelError, SettingsError
from unet_engine.model import attachments, trust
from unet_engine.model import credit as credits
from unet_engine.model.attached import judged_network, network_bytes, verdicts
from unet_engine.model.ending import UNPROVED, Ending, applied_again
from unet_engine.model.ensemble import chosen, combined_hash, common_spec, listed, weighted
from unet_engine.model.last_layer import LastLayer
from unet_engine.model.normalization import Normalization
from unet_engine.model.onnx_file import read_onnx
from unet_engine.model.onnx_rewrite import INTEGERS, Rewriting
from unet_engine.model.spec import ACTIVATION_OF, Activation, Channels, ModelSpec, plain_name, read_toml
from unet_engine.model.verdict import Verdict
from unet_engine.paths import check_file, several

Format = Literal["onnx", "pt2", "torchscript", "fake"]
_SUFFIXES: dict[str, Format] = {
    ".onnx": "onnx",
    ".pt2": "pt2",
    ".pt": "torchscript",
    ".ts": "torchscript",
    ".fake.toml": "fake",
}


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
    members: tuple[ModelFile, ...] = ()
    """The networks, two or more, whose answers are averaged; the other fields are then those of the first, but for the
    spec and the hash, which are of all. Empty: it is one network."""
    label: str = ""
    """What it is called among the members."""
    weight: float = 1.0
    """Of its answers in their mean, relative to the others'."""
    inside: str | None = None
    """Which network of an ONNX file of several: the SHA-256 of what is attached, empty for the file's own. None: the
    file has one."""
    last: LastLayer | None = None
    """Its last layer, where that is linear and of one voxel: what goes into it can be blended in place of the
    outputs."""
    gives_features: bool = False
    """Whether a library is handed the network without its last layer."""
    splits: bool = False
    """Whether it is handed sums of convolutions in place of those of concatenated tensors."""
    asked: tuple[str, str | None, str | None] = ("", None, None)
    """Which files and which of their networks were asked for, and with what weights; see `open_model`."""

    @property
    def networks(self) -> tuple[ModelFile, ...]:
        """The members, of this spec; or it alone."""
        return tuple(replace(member, spec=self.spec) for member in self.members) or (self,)

    @property
    def shares(self) -> tuple[float, ...]:
        """What each of the networks counts in the mean; all together one."""
        total = sum(network.weight for network in self.networks)
        return tuple(network.weight / total for network in self.networks)

    @property
    def blended(self) -> int:
        """Channels of what a library gives for a window, which are blended."""
        return self.last.features if self.last and self.gives_features else self.spec.channels_out

    @property
    def ahead(self) -> LastLayer | None:
        """The last layer, where it is still to be applied to what a library gives."""
        return self.last if self.gives_features else None

    @property
    def named(self) -> str:
        """How people are told of it."""
        return f"{self.path.name} ({self.label})" if self.label else self.path.name

    def again(self, window: tuple[int, ...]) -> ModelFile:
        """The same, read from its files once more, as they are now."""
        files, folds, weights = self.asked
        return open_model(files, window, self.spec.activation, self.head, folds, weights)

    @property
    def runs_code(self) -> bool:
        """Whether opening or running it may do anything a program may."""
        return self.format in trust.RUNS_CODE

    def check_trust(self) -> None:
        """Raise `ModelError` where it runs code and the user does not trust it."""
        for network in self.networks:
            if not network.trusted:
                trust.check(network.path, network.format, network.sha256)

    def trust(self) -> ModelFile:
        """The same, trusted from now on: by this process, and as far as the user's folder can be written, by all."""
        if self.members:
            return replace(self, members=tuple(member.trust() for member in self.members), trusted=True)
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
        found = (applied_again(n.proved, self.spec.activation, self.spec.channels_out) for n in self.networks)
        return next((reason for reason in found if reason), "")

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

    def thresholded(self, threshold: float | None) -> ModelFile:
        """The model whose labels are where channels exceed what ``--threshold`` says; as it promises where that is
        None. Raises `SettingsError` where the model cannot be of that kind."""
        if threshold is None:
            return self
        try:
            spec = ModelSpec.model_validate({**self.spec.model_dump(), "threshold": threshold})
        except ValidationError as error:
            said = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise SettingsError(f"--threshold {threshold:g} does not fit {self.path}: {said}") from error
        return replace(self, spec=spec)

    def meant(self, channels: Channels | None) -> ModelFile:
        """The model whose channels are what ``--channels`` says; as it promises where that is None. An activation that
        was guessed follows. Raises `SettingsError` where the model cannot be of that kind."""
        if channels is None:
            return self
        follows = ACTIVATION_OF.get(channels) if self.guessed else None
        said: dict[str, Any] = {"activation": follows} if follows else {}
        if self.spec.regions is not None and channels != "multilabel":
            said |= {"regions": None, "classes": ()}  # names are of the labels that regions give
        if channels != "multilabel" and self.spec.channels_out > 1:
            said |= {"threshold": None}
        if channels != "classes":
            said |= {"kept_labels": None}
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
    folds: str | None = None,
    weights: str | None = None,
) -> ModelFile:
    """Read what the model at `path` promises; several files, parted by commas, or one of several networks, are a model
    of members. `window` is needed, and used, only where the file does not fix a size itself. `activation` wins over
    what the file says. `head`: name of the output that is wanted, where there are several; see
    `unet_engine.model.outputs.choose`. `folds`: which members, ``0,2`` or ``all``; `weights`: what each counts,
    ``2,1``.

    Raises `SettingsError` where the model cannot be of that kind, and `ModelError` where the file is missing, corrupt,
    of no known format, says too little, or where members do not fit one another.
    """
    paths = files_of(path)
    found = [network for file in paths for network in _opened(file, window, activation, head, several=len(paths) > 1)]
    numbers = chosen([network.label or network.path.name for network in found], folds)
    picked = [found[i] for i in numbers]
    counts = weighted([network.weight for network in picked], weights)
    asked = (str(path), folds, weights)
    if len(picked) == 1:
        return replace(picked[0], asked=asked)
    return replace(together([replace(n, weight=w) for n, w in zip(picked, counts, strict=True)]), asked=asked)


def files_of(model: str | Path) -> tuple[Path, ...]:
    """The files that are meant: one, or several parted by commas. Raises `ModelError` where one has no name."""
    if isinstance(model, Path):
        return (model,)
    if not all(names := several(model)):
        raise ModelError(f"--model {model}: there is no file before or behind one of its commas; leave that comma out")
    return tuple(map(Path, names))


def together(members: Sequence[ModelFile]) -> ModelFile:
    """One model of these. Raises `ModelError` where they do not fit one another."""
    first = members[0]
    for other in members[1:]:
        if other.format != first.format:
            raise ModelError(
                f"{first.named} and {other.named} are of different formats, which one library cannot run together; "
                "export one of them to the other's"
            )
        if other.takes_integers != first.takes_integers:
            raise ModelError(
                f"{first.named} and {other.named}: one takes whole numbers and one does not; run them alone"
            )
    weights, names = [m.weight for m in members], [m.named for m in members]
    spec = common_spec([m.spec for m in members], weights, names)
    paths = dict.fromkeys(m.path for m in members)
    if len(paths) > 1:
        spec = spec.model_copy(update={"name": plain_name("+".join(dict.fromkeys(m.spec.name for m in members)))})
    return replace(
        first, spec=spec, sha256=combined_hash([m.sha256 for m in members], weights), members=tuple(members),
        verdicts=(), label="", weight=1.0, trusted=all(m.trusted for m in members),
        outside=tuple(dict.fromkeys(f for m in members for f in m.outside)),
        notes=tuple(dict.fromkeys(note for m in members for note in m.notes)),
    )  # fmt: skip


def _opened(
    path: Path,
    window: Sequence[int] | None,
    activation: Activation | None,
    head: str | None,
    *,
    several: bool,
) -> list[ModelFile]:
    """The networks of one file. several: it is one of several files, after which its networks are called."""
    size = tuple(window) if window else None
    if _checked(path) == "onnx" and (members := listed(path)):
        prefix = f"{path.stem}/" if several else ""
        return [
            replace(_onnx(path, size, activation, head, m.network), label=prefix + m.name, weight=m.weight)
            for m in members
        ]
    return [replace(_alone(path, size, activation, head), label=path.stem if several else "")]


def _checked(path: Path) -> Format:
    """Its format. Raises `ModelError` where it cannot be a model file."""
    if not path.exists():
        raise ModelError(f"{path} does not exist; give a model file with --model (.onnx, .pt2, .pt)")
    if path.is_dir():
        raise ModelError(
            f"{path} is a folder in which no model lies that is known; give a model file with --model (.onnx, .pt2, .pt), "
            "or the folder of a trainer of nnU-Net, of a bundle of MONAI, of a bioimage.io model or of save_pretrained"
        )
    kind = _format(path)
    try:
        check_file(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}; give a model file with --model") from error
    return kind


def _alone(path: Path, window: tuple[int, ...] | None, activation: Activation | None, head: str | None) -> ModelFile:
    kind = _format(path)
    if kind == "onnx":
        return _onnx(path, window, activation, head)
    sha256 = _hash([path], kind)
    if kind == "fake":
        spec = ModelSpec.written(read_toml(path).get("spec", {}), path)
        return ModelFile(path, kind, sha256, spec).activated(activation)
    from unet_engine.model.torch_file import read_torch

    found = read_torch(path, kind, activation, head)
    return ModelFile(
        path, kind, sha256, found.spec, ends_in=found.ends_in, proved=found.proved,
        saved_batch=found.saved_batch, head=found.head, guessed=found.guessed, trusted=trust.is_trusted(sha256),
    ).activated(activation)  # fmt: skip


def _onnx(
    path: Path,
    window: tuple[int, ...] | None,
    activation: Activation | None,
    head: str | None,
    inside: str | None = None,
) -> ModelFile:
    """inside: which network of a file of several, see `ModelFile.inside`."""
    data = None if inside is None else network_bytes(path, inside)
    found = read_onnx(path, window, activation, head, data)
    sha256 = (
        hashlib.sha256(data + found.rewriting.text.encode()).hexdigest() if data is not None
        else _hash([path, *found.weights], "onnx", found.rewriting.text)
    )  # fmt: skip
    judged = verdicts(path)
    return ModelFile(
        path,
        "onnx",
        sha256,
        found.spec,
        judged if inside is None else tuple(v for v in judged if v.model == sha256),
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
        inside=inside,
        credit=credits.read(path),
        last=found.last,
    ).activated(activation)


def is_model(path: str | Path) -> bool:
    """Whether `path` is called like a model file."""
    return str(path).lower().endswith(tuple(_SUFFIXES))


def _format(path: Path) -> Format:
    for suffix, kind in _SUFFIXES.items():
        if path.name.lower().endswith(suffix):
            return kind
    if path.name.lower().endswith(".zip"):
        raise ModelError(
            f"{path} is an archive in which no model lies that is known; unpack it, and give the file or folder of the model"
        )
    raise ModelError(f"{path} does not end like a model file; give one that ends in .onnx, .pt2, .pt or .ts")


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


def attached_network(model: ModelFile, sha256: str) -> bytes:
    """The attached network of that hash. Raises `ModelError` where it is missing or not what was judged."""
    return judged_network(model.path, sha256)
