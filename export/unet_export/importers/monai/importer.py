"""MONAI bundles: a folder or zip with ``configs/metadata.json``, ``configs/inference.json`` and ``models/model.pt``."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from unet_engine.errors import ModelError, first_line
from unet_engine.model.credit import Credit
from unet_engine.model.spec import Resampling
from unet_engine.units import Tell, brief, times
from unet_engine.version import version_of
from unet_export.importers import code
from unet_export.importers.base import Imported, Member, Wanted
from unet_export.importers.files import Files
from unet_export.importers.intensity import NotPossible
from unet_export.importers.monai import networks
from unet_export.importers.monai.before import Before
from unet_export.importers.monai.behind import Behind, behind_of, numbers_above
from unet_export.importers.monai.config import Config, NeedsTrust
from unet_export.importers.monai.joined import joined
from unet_export.importers.monai.objects import about_objects
from unet_export.importers.monai.pads import about_pads
from unet_export.importers.monai.transforms import CROP, HARMLESS, before_of, name_of, transforms_of
from unet_export.importers.steps import Reorder

_METADATA = "configs/metadata.json"
_CONFIGS = tuple(f"configs/{name}.{kind}" for name in ("inference", "evaluate") for kind in ("json", "yaml", "yml"))
_STATE = ("models/model.pt", "models/model.pth", "models/model.safetensors")
_SCRIPT = "models/model.ts"
_NETWORKS = ("network_def", "network", "net", "model")
_BEFORE = ("preprocessing", "pre_transforms", "transforms", "preprocessing_transforms")
FINER = 9 / 7
"""Voxels of a certificate's example by one of the network's, along each axis. Of ratios of two odd numbers no voxel
lies in the middle between two others, where MONAI's nearest one is a matter of rounding errors."""
_PADDING = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}
"""By MONAI's name, what a run calls it."""
_WEIGHTS = ("sigma_scale", "roi_weight_map")
"""Arguments of an inferer that change how windows are weighted, but for what they are by default."""
_BEHIND = ("postprocessing", "post_transforms", "postprocessing_transforms")


class MonaiBundle:
    name = "MONAI bundle"
    extra = "monai"
    keeps = (
        "the network from its configuration, by a list of MONAI's classes; window, overlap and mode of its inferer; "
        "intensity, spacing and orientation; class names, licence, authors, references; compared with MONAI's own "
        "sliding_window_inference"
    )
    cannot = (
        "$-expressions that are code, networks of other classes and model.ts without --trust; transforms that look at "
        "objects or change shapes (named); detection, generation and classification"
    )

    def recognises(self, path: Path) -> bool:
        if path.is_dir():
            return (path / _METADATA).is_file() and any((path / name).is_file() for name in _CONFIGS)
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
            return False
        return any(n == _METADATA or n.endswith("/" + _METADATA) for n in names)

    def content(self, path: Path) -> list[Path]:
        if not path.is_dir():
            return [path]
        return [path / name for name in ("configs", "models", "scripts", "LICENSE") if (path / name).exists()]

    def read(self, path: Path, wanted: Wanted, tell: Tell) -> Imported:
        with Files(path) as files:
            return _Reader(files, wanted, tell).imported()


def _of_several(path: str, why: str) -> ModelError:
    return ModelError(
        f"{path}: {why}; make a bundle of each, import them one by one, and run them together: --model A.onnx,B.onnx"
    )


@dataclass(frozen=True)
class Inferer:
    """How the bundle puts windows together; sizes in MONAI's order of axes."""

    roi: tuple[int, ...] | None
    overlap: float
    mode: str
    padding: str
    left_out: tuple[str, ...] = ()
    across: int | None = None
    """Of a network of planes: the axis that they are cut across."""
    other: tuple[str, ...] = ()
    """What of it makes other labels here."""


class _Reader:
    def __init__(self, files: Files, wanted: Wanted, tell: Tell) -> None:
        self.files, self.wanted, self.tell = files, wanted, tell
        self.path = str(files.path)
        self.metadata = files.mapping(_METADATA)
        name = next((n for n in _CONFIGS if files.has(n)), None)
        if name is None:
            raise ModelError(
                f"{self.path} lacks configs/inference.json, which says how its network is run; get it again"
            )
        if wanted.trust:
            code.check_trust(files.path, files.local(name), "its configuration", given=True)
        self.config = Config(self.path, self._joined(files.mapping(name)), trusted=wanted.trust)

    def _joined(self, said: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return {"bundle_root": ".", **joined(said, self.files.mapping)}
        except KeyError as text:
            raise ModelError(
                f"{self.path}: its configuration says {brief(text.args[0])}, which leads nowhere; get the bundle again"
            ) from None
        except RecursionError as error:
            raise ModelError(f"{self.path}: its configuration is too deep; get the bundle again") from error

    def imported(self) -> Imported:
        try:
            before, behind, inferer = self._before(), self._behind(), self._inferer()
            network, weights = self._network()
        except NeedsTrust as expression:
            raise ModelError(
                f"{self.path}: its configuration holds the expression ${str(expression)[:120]}, which is code; use --trust, "
                "once, if you trust who made it"
            ) from None
        dims = _dims(network)
        x_first = before.x_first if self.wanted.order is None else self.wanted.order == "xyz"
        if dims == 3 and before.x_first is None and self.wanted.order is None:
            self.tell("note: nothing says in which order its axes are: z, y, x is taken; --order xyz says otherwise")
        order = _Order(dims, bool(x_first))
        # planes have no orientation, nor a distance, that volumes could be brought to
        turned = before.orientation is not None or len(before.spacing or ()) > dims
        if dims == 2 and inferer.across is not None and (turned or inferer.across != (2 if x_first else 0)):
            network, inferer = _across(network, inferer)
            order = _Order(3, bool(x_first))
        told = _about_spacing(before, order), _about_orientation(before, order)
        objects = about_objects(behind.objects, dims, self._foreground(behind))
        others = (*before.other, *about_pads(before, inferer.roi), *inferer.other, *behind.other, *objects)
        self._check_labels(others)
        left_out = (
            *others,
            *before.left_out,
            *told[0],
            *told[1],
            *behind.left_out,
            *inferer.left_out,
            *about_outside(before, behind),
        )
        promised = self._promised(before, behind, inferer, order)
        return Imported(
            (Member(weights, order.of(network)),),
            promised,
            "its configuration",
            self._credit(left_out, inferer),
            head=self.wanted.head,
            predictor=_predictor(network, before, inferer, order, behind, self.wanted.head),
            predicted_by="MONAI's sliding_window_inference",
            example_spacing=_finer(promised) if "resampling" in promised else None,
            inference=_settings(inferer),
            versions={"monai": version_of("monai") or ""},
        )

    def _foreground(self, behind: Behind) -> int | None:
        """How many labels there are but 0; None where channels may overlap."""
        channels = int(_format(self.metadata, "outputs").get("num_channels") or 1)
        return channels - 1 if behind.exclusive else 1 if channels == 1 else None

    def _check_labels(self, others: Sequence[str]) -> None:
        """Raise `ModelError` where some of it is not done here and labels would be others."""
        if others and not self.wanted.uncertified:
            raise ModelError(
                f"{self.path}: its labels would be others, as not all of it is done here: {'; '.join(others)}; run it with "
                "MONAI, or import it without that: unet-engine import --uncertified"
            )

    # --- what it says ---

    def _first(self, names: tuple[str, ...]) -> Any:
        return next((self.config.value(name) for name in names if name in self.config), None)

    def _before(self) -> Before:
        listed = transforms_of(self._first(_BEFORE))
        if self.wanted.normalize:  # what is above a number once voxels are normalised is not known then
            listed = [t for t in listed if "ntensity" not in str(t.get("_target_")) and name_of(t) != CROP]
        inputs = _formats(self.metadata, "inputs") or {"image": {}}
        try:
            return before_of(listed, "image" if "image" in inputs else str(next(iter(inputs))))
        except (NotPossible, KeyError, TypeError, ValueError) as why:
            raise ModelError(
                f"{self.path}: its preprocessing {why}; prepare the volume with MONAI, or say how voxels become numbers with "
                "--normalize"
            ) from why

    def _behind(self) -> Behind:
        """One by one: what holds code is left out, and the others still say what the outputs are."""
        name = next((n for n in _BEHIND if n in self.config), None)
        said: Any = self.config.said[name] if name else []
        inner = isinstance(said, Mapping) and isinstance(said.get("transforms"), list)
        listed = said["transforms"] if inner else said
        place = f"{name}::transforms" if inner else str(name)
        places = [f"{place}::{i}" for i in range(len(listed))] if isinstance(listed, list) else [place]
        kept, saves, changes = list[Any](), list[str](), list[str]()
        for one in places:
            try:
                kept.append(self.config.value(one))
            except NeedsTrust as expression:
                code_in = f"postprocessing: it holds the expression ${str(expression)[:80]}, which is code"
                (saves if self._only_writes(one) else changes).append(code_in)
        if "Ensemble" in str(self.config.said.get("evaluator")):
            raise _of_several(self.path, "its evaluator is one of several networks")
        try:
            found = behind_of(transforms_of(kept))
        except NotPossible as why:
            raise _of_several(self.path, str(why)) from why
        found.left_out += saves
        found.other += changes
        return found

    def _only_writes(self, place: str) -> bool:
        """Whether a transform, whose arguments hold code, changes no value whatever they are."""
        said: Any = self.config.said
        for part in place.split("::"):
            said = said[int(part)] if isinstance(said, list) else said.get(part) if isinstance(said, Mapping) else None
        return isinstance(said, Mapping) and name_of(said) in ("SaveImage", *HARMLESS)

    def _inferer(self) -> Inferer:
        said = self.config.value("inferer") if "inferer" in self.config else {}
        said = said if isinstance(said, Mapping) else {}
        name = str(said.get("_target_", "SlidingWindowInferer")).rpartition(".")[2]
        if name == "SimpleInferer" or not said:
            return self._in_one_window(Inferer(None, 0.5, "gaussian", "constant"), "SimpleInferer")
        if name not in ("SlidingWindowInferer", "SlidingWindowInfererAdapt", "SliceInferer"):
            raise ModelError(f"{self.path}: its inferer {name} has no counterpart; run it with MONAI")
        roi, overlap = said.get("roi_size"), said.get("overlap", 0.25)
        sides = roi if isinstance(roi, list | tuple) else [] if roi is None else [roi]
        sizes = self._numbers("roi_size", [0 if n is None else n for n in sides])  # None: as long as the image
        if any(n != int(n) for n in sizes):
            raise ModelError(f"{self.path}: roi_size of its inferer is {brief(roi)}, no numbers of voxels; correct it")
        several = self._numbers("overlap", overlap if isinstance(overlap, list | tuple) and overlap else [overlap])
        if not all(0 <= o < 1 for o in several):
            raise ModelError(
                f"{self.path}: the overlap of its inferer is {brief(overlap)}, no part of a window; correct it"
            )
        other: tuple[str, ...] = ()
        if len(set(several)) > 1:
            other += (f"overlap={brief(overlap)} of its inferer: all axes have one here",)
        other += tuple(f"{name}={brief(said[name])} of its inferer: weights of windows are MONAI's own here"
                       for name in _WEIGHTS if said.get(name) not in (None, 0.125))  # fmt: skip
        padding = str(said.get("padding_mode", "constant")).rpartition(".")[2].lower()
        if padding not in _PADDING or said.get("cval"):
            what = f"cval={said['cval']}" if said.get("cval") else f"padding_mode={padding}"
            other += (f"{what} of its inferer: volumes smaller than the window get zeros around them here",)
        free = not sizes or any(int(n) <= 0 for n in sizes)
        found = Inferer(
            None if free else tuple(int(n) for n in sizes), several[0], str(said.get("mode", "constant")), padding,
            across=self._across(said.get("spatial_dim") or 0) if name == "SliceInferer" else None, other=other,
        )  # fmt: skip
        return self._in_one_window(found, f"roi_size={brief(roi)} of its inferer") if sizes and free else found

    def _in_one_window(self, found: Inferer, what: str) -> Inferer:
        """Of an inferer whose windows are as large as the image, which windows here are only where --window says so."""
        if self.wanted.window:
            return replace(found, left_out=(f"{what}: of images larger than --window several windows are blended",))
        why = f"{what}: its windows are as large as the image; import --window says how large images are, at most"
        return replace(found, other=(*found.other, why))

    def _across(self, said: Any) -> int:
        if said not in (0, 1, 2):
            raise ModelError(
                f"{self.path}: spatial_dim of its SliceInferer is {brief(said)}; it is 0, 1 or 2: correct it"
            )
        return int(said)

    def _numbers(self, name: str, said: Sequence[Any]) -> list[float]:
        """What its inferer says. Raises `ModelError` unless these are numbers."""
        if not all(isinstance(v, int | float) and isfinite(v) for v in said):
            raise ModelError(f"{self.path}: {name} of its inferer is {brief(said)}, and numbers are needed; correct it")
        return [float(v) for v in said]

    # --- its network ---

    def _network(self) -> tuple[Any, str]:
        """The network and the file of its weights."""
        name, state = self._named(), self._state()
        if name is None or state is None:
            return self._script("it names no network" if name is None else "it lacks models/model.pt")
        said = self.config.value(name) if self.wanted.trust else self._data(name)
        if isinstance(said, Mapping) and networks.class_of(said) is not None:
            from unet_export.conversion.weights import fill, read_weights

            network = networks.built(self.path, said)
            path = self.files.local(state)
            fill(network, read_weights(path), self.wanted.weights, self.tell, "its configuration")
            return network, Path(state).name
        target = said.get("_target_") if isinstance(said, Mapping) else said
        if self.wanted.trust:
            return self._by_monai(name, state), Path(state).name
        return self._script(f"its network {target} is none of the classes that are built without trust")

    def _named(self) -> str | None:
        """The part of the configuration that is its network: what the evaluator is given, the usual name, or the only
        one of a known class. Raises `ModelError` where several could be meant."""
        evaluator = self.config.said.get("evaluator")
        given = str(evaluator.get("network") or "") if isinstance(evaluator, Mapping) else ""
        usual = [n for n in _NETWORKS if n in self.config]
        if given.startswith("@") and given[1:] in self.config and given[1:] not in usual:
            return given[1:]
        if usual:
            return usual[0]
        said = self.config.said
        others = [n for n in said if isinstance(said[n], Mapping) and networks.class_of(said[n]) is not None]
        if len(others) > 1:
            raise _of_several(self.path, f"it has the networks {', '.join(others)}, and none is called network_def")
        return others[0] if others else None

    def _data(self, name: str) -> Any:
        """What is said of the network; one that only wraps another by an expression is that one."""
        try:
            return self.config.value(name)
        except NeedsTrust:
            others = [n for n in _NETWORKS if n != name and n in self.config]
            if not others:
                raise
            return self.config.value(others[0])

    def _state(self) -> str | None:
        found = [n for n in _STATE if self.files.has(n)]
        if found:
            return found[0]
        others = [
            n for n in self.files.names if n.startswith("models/") and n.endswith((".pt", ".pth", ".safetensors"))
        ]
        if len(others) > 1:
            raise ModelError(
                f"{self.path} has the weights {', '.join(others)}, and none is called model.pt; rename one"
            )
        return others[0] if others else None

    def _script(self, why: str) -> tuple[Any, str]:
        import torch

        if not self.files.has(_SCRIPT):
            raise ModelError(f"{self.path}: {why}, and there is no {_SCRIPT}; use --trust, or get the whole bundle")
        path = self.files.local(_SCRIPT)
        code.check_trust(
            self.files.path, path, f"{why}; {_SCRIPT} is TorchScript, which may write files", given=self.wanted.trust
        )
        try:
            return torch.jit.load(str(path), map_location="cpu").float().eval(), Path(_SCRIPT).name
        except Exception as error:  # PyTorch raises what its parsers raise
            raise ModelError(
                f"{self.path}: {_SCRIPT} cannot be loaded by PyTorch: {first_line(error)}; download it again"
            ) from error

    def _by_monai(self, name: str, state: str) -> Any:
        """The network as MONAI itself builds it, with the bundle's own code."""
        from monai.bundle.config_parser import ConfigParser

        from unet_export.conversion.weights import fill, read_weights

        sys.path.insert(0, str(self.files.path))
        try:
            network = ConfigParser(dict(self.config.said)).get_parsed_content(name)
        except Exception as error:
            raise ModelError(
                f"{self.path}: MONAI cannot build its network: {first_line(error)}; "
                "check that this version of MONAI is the bundle's"
            ) from error
        finally:
            sys.path.remove(str(self.files.path))
        fill(network, read_weights(self.files.local(state)), self.wanted.weights, self.tell, "its configuration")
        return networks.decided(network.float().cpu().eval())

    # --- what becomes of it ---

    def _promised(self, before: Before, behind: Behind, inferer: Inferer, order: _Order) -> dict[str, Any]:
        values: dict[str, Any] = {"name": str(self.metadata.get("name") or Path(self.path).stem)}
        if not self.wanted.normalize:
            values["normalization"] = before.intensity.normalization()
        given, made = _format(self.metadata, "inputs"), _format(self.metadata, "outputs")
        if isinstance(given.get("num_channels"), int):
            values["channels_in"] = given["num_channels"]
        window = inferer.roi or _numbers(given.get("spatial_shape"))
        if window and len(window) == 1:
            window = window * order.dims
        if window and len(window) == order.dims:
            values["window"] = order.ours(window)
        if before.spacing:
            values |= {"spacing": order.ours(_as_many(before.spacing, order.dims)), "spacing_unit": "millimeter"}
            if before.resampling and len(before.spacing) <= order.dims:
                values["resampling"] = Resampling.model_validate({**before.resampling, **behind.output})
        if before.crop is not None:
            values["crop"] = before.crop
        if before.crop_margin:
            values["crop_margin"] = _margin_of(before.crop_margin, order)
        if before.orientation and order.dims == 3 and order.x_first:
            values["orientation"] = before.orientation[::-1]
        return values | _meaning(behind, made)

    def _credit(self, left_out: tuple[str, ...], inferer: Inferer) -> Credit:
        data = self.metadata
        return Credit(
            source=f"MONAI bundle: {data.get('name') or Path(self.path).stem}",
            version=str(data.get("version") or ""),
            licence=str(data.get("license") or self._licence()),
            authors=_texts(data.get("authors")),
            citation=_texts(data.get("references")),
            left_out=left_out,
            inference={k: str(v) for k, v in _settings(inferer).items()},
        )

    def _licence(self) -> str:
        """The first words of the licence's text."""
        if not self.files.has("LICENSE"):
            return ""
        lines = [line.strip() for line in self.files.text("LICENSE").splitlines() if line.strip()]
        return " ".join(lines[:2])[:80]


@dataclass(frozen=True)
class _Order:
    """Axes of the network: as ours, or x first."""

    dims: int
    x_first: bool

    def ours(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(reversed(values)) if self.x_first else tuple(values)

    def of(self, network: Any) -> Any:
        """The network with the engine's order of axes."""
        if not self.x_first:
            return network
        from unet_export.importers.module_steps import wrapped_module

        turned = Reorder((), (0, 1, *range(self.dims + 1, 1, -1)), ())
        return wrapped_module(network, [turned], [turned])


def _across(network: Any, inferer: Inferer) -> tuple[Any, Inferer]:
    """A network of planes as one of volumes, on windows of one voxel across them."""
    from unet_export.importers.module_steps import Transposed

    across = inferer.across or 0
    inside = [axis for axis in range(3) if axis != across]
    roi = inferer.roi and (*inferer.roi[:across], 1, *inferer.roi[across:])
    return Transposed(network, (across, *inside), planes=True).eval(), replace(inferer, roi=roi)


def _meaning(behind: Behind, made: Mapping[str, Any]) -> dict[str, Any]:
    """What outputs are. made: what the metadata say of them."""
    several, values = int(made.get("num_channels") or 1) > 1, dict[str, Any]()
    if behind.numbers_above is not None:
        values |= numbers_above(behind.numbers_above, several=several)
    if behind.activation:
        values["activation"] = behind.activation
        if behind.threshold is not None:
            values["threshold"] = float(behind.threshold)
        if behind.kept is not None:
            values["kept_labels"] = tuple(sorted(behind.kept))
        names = _class_names(made.get("channel_def"))
        if behind.activation == "softmax":
            values |= {"channels": "classes"} | ({"classes": names} if names else {})
        elif several:
            names = names if names and names[0].lower() == "background" else ("background", *names) if names else ()
            right = len(names) == int(made["num_channels"]) + 1
            values |= {"channels": "multilabel"} | ({"classes": names} if right else {})
    return values


def _finer(promised: Mapping[str, Any]) -> tuple[float, ...]:
    return tuple(s / FINER for s in promised["spacing"])


def _formats(metadata: Mapping[str, Any], which: str) -> Mapping[str, Any]:
    """What the metadata say of its inputs, or outputs, by name; empty where that is no such thing."""
    formats = metadata.get("network_data_format")
    found = formats.get(which) if isinstance(formats, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _format(metadata: Mapping[str, Any], which: str) -> Mapping[str, Any]:
    """The first of them."""
    found = next(iter(_formats(metadata, which).values()), None)
    return found if isinstance(found, Mapping) else {}


def _texts(said: Any) -> tuple[str, ...]:
    """Lines of a credit, of which there may be one or several."""
    return tuple(map(str, said)) if isinstance(said, list) else (str(said),) if said else ()


def _dims(network: Any) -> Literal[2, 3]:
    weights = [p for p in network.parameters() if p.dim() in (4, 5)]
    return 2 if weights and weights[0].dim() == 4 else 3


def _numbers(shape: Any) -> tuple[int, ...] | None:
    whole = isinstance(shape, list) and shape and all(isinstance(n, int) and n > 0 for n in shape)
    return tuple(shape) if whole else None


def _class_names(said: Any) -> tuple[str, ...]:
    if not isinstance(said, Mapping) or not all(str(k).isdigit() for k in said):
        return ()
    return tuple(str(said[key]) for key in sorted(said, key=lambda k: int(str(k))))


def _margin_of(margin: tuple[int, ...], order: _Order) -> tuple[int, ...]:
    """Along z, y and x. One number is that of all axes."""
    along = margin * 3 if len(margin) == 1 else order.ours(margin)
    return (0,) * (3 - len(along)) + along


def _as_many(values: tuple[float, ...], dims: int) -> tuple[float, ...]:
    """Of so many axes, as MONAI takes a `pixdim`: the last is that of all that follow, and others are not looked at."""
    return (*values, *values[-1:] * dims)[:dims]


def _about_spacing(before: Before, order: _Order) -> tuple[str, ...]:
    if before.spacing is None or len(before.spacing) <= order.dims:
        return ()
    return (
        f"Spacing({times([f'{s:g}' for s in before.spacing])}): planes of other voxels are refused, and their distance is not looked at",
    )


def about_outside(before: Before, behind: Behind) -> tuple[str, ...]:
    """Around what was cropped `Invert` puts 0. Where that is done first, it is an output like any other."""
    first = behind.done[:1] == ["Invert"]
    if before.crop is None or not first or behind.activation != "sigmoid" or (behind.threshold or 0.5) > 0.5:
        return ()
    return (f"Invert of outputs before their sigmoid: a half, and so 1, outside of what {CROP} takes; here it is 0",)


def _about_orientation(before: Before, order: _Order) -> tuple[str, ...]:
    if before.orientation is None:
        return ()
    checked = "others are seen turned" if order.dims == 3 and order.x_first else "nothing checks it"
    return (f"Orientation({before.orientation}): the network sees volumes so, and {checked}",)


def _settings(inferer: Inferer) -> dict[str, Any]:
    """Settings of a run that blends and pads as the bundle does."""
    return {
        "overlap": inferer.overlap,
        "blend": "monai" if inferer.mode == "gaussian" else "constant",
        "padding": _PADDING.get(inferer.padding, "constant"),
    }


def _predictor(network: Any, before: Before, inferer: Inferer, order: _Order, behind: Behind, head: str | None) -> Any:
    from unet_export.importers.monai.predictor import Predictor

    return Predictor(
        network, before, inferer.overlap, inferer.mode, inferer.padding, order.x_first, behind.output["output"], head
    )
