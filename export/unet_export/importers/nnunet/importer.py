"""Result folders of nnU-Net v2: ``plans.json``, ``dataset.json`` and ``fold_*``, one of its folds, or a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from unet_engine.errors import ModelError
from unet_engine.model.credit import Credit
from unet_engine.model.normalization import Normalization, Pair
from unet_engine.model.spec import Resampling
from unet_engine.units import Tell
from unet_export.importers.base import Imported, Member, Wanted
from unet_export.importers.files import Files
from unet_export.importers.nnunet import folders
from unet_export.importers.nnunet.geometry import Axes
from unet_export.importers.nnunet.plans import (
    DATASET,
    PLANS,
    RESAMPLING,
    Configuration,
    Dataset,
    Labels,
    Plans,
    configuration_of,
    dataset_of,
    labels_of,
    plans_of,
    read_json,
)

_RESAMPLED = "volumes of other voxels are refused until they are resampled so, or run as they are with --ignore-spacing"
_REORIENTS, _CANONICAL = "NibabelIOWithReorient", "SAR"
"""The one of its readers that turns scans, and where their z, y and x point then; the others leave them as they lie."""


class NnUNet:
    """See `unet_export.importers.base.Importer`."""

    name = "nnU-Net v2"
    extra = "nnunet"
    keeps = (
        "network, patch size, transposed axes, spacing, normalisation, classes, regions, mirrored axes, folds; 2D, 3d_fullres, "
        "3d_lowres"
    )
    cannot = "cascades, nnU-Net 1"

    def recognises(self, path: Path) -> bool:
        return folders.located(path) is not None or folders.is_first_version(path)

    def content(self, path: Path) -> list[Path]:
        found = folders.located(path)
        if found is None:
            return [path]
        files = [found.root / name for name in (PLANS, DATASET) if (found.root / name).is_file()]
        folds = [f"fold_{found.fold}"] if found.fold else [p.name for p in sorted(found.root.glob("fold_*"))]
        return files + [p for fold in folds for p in sorted((found.root / fold).glob("checkpoint_*.pth"))]

    def read(self, path: Path, wanted: Wanted, tell: Tell) -> Imported:
        found = folders.located(path)
        if found is None:
            raise ModelError(
                f"{path} is of nnU-Net 1, whose networks need its own code; run it with nnU-Net 1, or train it again with "
                "nnU-Net 2, or export its network with unet-engine export --factory"
            )
        found = folders.checked(path, found)
        chosen = folders.folds(found, wanted.folds)
        with Files(found.root) as files:
            said = read_json(files, PLANS), read_json(files, DATASET)
            checkpoints = [(fold, _checkpoint(files, file)) for fold, file in chosen]
        plans, dataset = plans_of(found.root, said[0]), dataset_of(found.root, said[1])
        name = _configuration_name(found.root, checkpoints)
        configuration = _supported(found.root, name, configuration_of(found.root, plans, name))
        labels = labels_of(found.root, dataset)
        _check_code(found.root, plans, configuration, wanted)
        source = _Source(found.root, name, plans, dataset, configuration, labels)
        asked = wanted.folds is not None and wanted.folds.strip() != "all"
        beside = [] if asked else folders.passed_over(found, [fold for fold, _ in chosen])
        return source.imported(said, checkpoints, wanted, beside, tell)


class _Source:
    """A folder whose texts were read."""

    def __init__(
        self, root: Path, name: str, plans: Plans, dataset: Dataset, configuration: Configuration, labels: Labels
    ) -> None:
        self.root, self.name, self.plans, self.dataset = root, name, plans, dataset
        self.configuration, self.labels = configuration, labels
        self.axes = Axes.of(plans.transpose_forward, len(configuration.patch_size))

    def imported(
        self,
        said: tuple[dict[str, Any], dict[str, Any]],
        checkpoints: list[tuple[str, Any]],
        wanted: Wanted,
        beside: list[str],
        tell: Tell,
    ) -> Imported:
        """beside: folds that are there and were not asked for by name"""
        from unet_export.importers.module_steps import Transposed
        from unet_export.importers.nnunet import predictor

        normalization = None if wanted.normalize else self._normalization()
        nets = [self._network(fold, checkpoint, tell) for fold, checkpoint in checkpoints]
        planes = self.axes.across not in (None, 0)
        whole = [
            net if self.axes.is_plain else Transposed(net, self.axes.forward, planes=planes).eval() for net in nets
        ]
        members = tuple(Member(f"fold_{fold}", net) for (fold, _), net in zip(checkpoints, whole, strict=True))
        mirror = self._mirrored(checkpoints)
        resampling = self._resampling()
        left_out = []
        if not self.configuration.resamples:
            tell("note: its plans resample nothing, so voxels are taken as they are, whatever their size")
        elif resampling is None:
            functions = dict.fromkeys(
                (self.configuration.resampling_fn_data, self.configuration.resampling_fn_probabilities)
            )
            left_out.append(f"resampling as its plans have it ({', '.join(functions)}): {_RESAMPLED}")
        left_out += [
            f"fold_{fold}, which nnU-Net does not take either unless it is named: --folds fold_{fold}"
            for fold in beside
        ]
        promised = self._promised(normalization, mirror) | ({"resampling": resampling} if resampling else {})
        version = predictor.version()
        own = version is not None and not wanted.normalize
        finer = predictor.FINER if resampling else 1.0
        masked = normalization is not None and normalization.fills
        spacing = tuple(s / finer or 1.0 for s in promised["spacing"]) if resampling else None
        return Imported(
            members,
            promised,
            "its plans",
            self._credit(left_out, checkpoints),
            predictor=predictor.predictor_of(*said, self.name, nets, mirror, self.axes) if own else None,
            predicted_by=predictor.NAME,
            example=partial(predictor.example, ranges=self._ranges(), finer=finer, masked=masked),
            example_spacing=spacing,
            inference={"blend": "nnunet"},
            versions={predictor.MODULE: version} if version else None,
        )

    def _network(self, fold: str, checkpoint: Any, tell: Tell) -> Any:
        from unet_export.conversion.weights import fill
        from unet_export.importers.nnunet import network

        held, weights = checkpoint
        channels = len(self.dataset.channel_names), len(self.labels.channels)
        net = network.built(self.root, self.configuration.architecture, *channels, held["network_weights"])
        try:
            fill(net, weights, "network_weights", tell, "plans.json")
        except ModelError as error:
            raise ModelError(
                f"{error}; where the trainer {held.get('trainer_name')} builds a network of its own, export that with "
                "unet-engine export --factory"
            ) from error
        return net.float()

    def _mirrored(self, checkpoints: list[tuple[str, Any]]) -> tuple[int, ...] | None:
        """Axes of the network that nnU-Net mirrors along; as it does, those of the first fold."""
        said = checkpoints[0][1][0].get("inference_allowed_mirroring_axes")
        if said is None:
            return None
        dims = len(self.configuration.patch_size)
        axes = tuple(said) if isinstance(said, list | tuple) else (said,)
        if not all(isinstance(a, int) and 0 <= a < dims for a in axes):
            raise ModelError(f"{self.root}: its checkpoint names axes to mirror that are none: {said}; get it again")
        return tuple(sorted(set(axes)))

    def _normalization(self) -> Normalization:
        from unet_export.importers.nnunet.normalising import normalization_of

        if len(self.configuration.normalization_schemes) != len(self.dataset.channel_names):
            raise ModelError(
                f"{self.root}: {PLANS} normalises {len(self.configuration.normalization_schemes)} channels, {DATASET} "
                f"has {len(self.dataset.channel_names)}; get the folder again"
            )
        return normalization_of(self.root, self.plans, self.configuration)

    def _promised(self, normalization: Normalization | None, mirror: tuple[int, ...] | None) -> dict[str, Any]:
        from unet_export.importers.nnunet.network import steps

        configuration, axes = self.configuration, self.axes
        dims = len(configuration.patch_size)
        try:
            step = steps(configuration.architecture.arch_kwargs["strides"], dims)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ModelError(
                f"{self.root}: {PLANS}: its strides are not numbers per axis; get the folder again"
            ) from error
        least = [min(p, 2 * s) for p, s in zip(configuration.patch_size, step, strict=True)]
        values: dict[str, Any] = {
            "name": f"{self.plans.dataset_name} {self.name}",
            "channels_in": len(self.dataset.channel_names),
            "window": axes.in_spec(configuration.patch_size, 1),
            "window_min": axes.in_spec(least, 1),
            "window_step": axes.in_spec(step, 0),
            **self._meaning(),
            "mirror_axes": axes.mirrored(mirror or ()),
            **({"orientation": _CANONICAL} if self.plans.image_reader_writer == _REORIENTS else {}),
            "crop": "nonzero",
        }
        if configuration.resamples:
            values |= {"spacing": axes.in_spec(configuration.spacing, 0.0), "spacing_unit": "millimeter"}
        return values | ({"normalization": normalization} if normalization else {})

    def _meaning(self) -> dict[str, Any]:
        """What the outputs are."""
        order = self.labels.regions
        if order is None:
            return {"classes": self.labels.channels, "activation": "softmax", "channels": "classes"}
        names = ["background", *(f"class {k}" for k in range(1, max(len(order), *order) + 1))]
        for name, label in zip(self.labels.channels, order, strict=True):
            names[label] = name
        return {"classes": tuple(names), "activation": "sigmoid", "channels": "multilabel", "regions": order}

    def _resampling(self) -> Resampling | None:
        """None where the plans resample in a way that is not known."""
        said = self.configuration
        image = said.resampling_fn_data_kwargs.splines(said.resampling_fn_data)
        output = said.resampling_fn_probabilities_kwargs.splines(said.resampling_fn_probabilities)
        if image is None or output is None or image[2] != output[2]:
            return None
        apart = {None: "anisotropic", True: "always", False: "never"}
        overshoots = said.resampling_fn_data == RESAMPLING
        return Resampling.model_validate(
            {
                "image": image[0], "image_apart": image[1], "output": output[0], "output_apart": output[1],
                "apart": apart[image[2]], "cut": "extremes" if overshoots else None,
            }
        )  # fmt: skip

    def _ranges(self) -> list[Pair]:
        """Of the voxels of each channel, roughly."""
        found = []
        for channel in range(len(self.dataset.channel_names)):
            known = self.plans.intensities.get(str(channel))
            is_ct = self.configuration.normalization_schemes[channel : channel + 1] == ("CTNormalization",)
            found.append((known.percentile_00_5, known.percentile_99_5) if known and is_ct else (1.0, 255.0))
        return found

    def _credit(self, left_out: list[str], checkpoints: list[tuple[str, Any]]) -> Credit:
        if any((self.root / name).exists() for name in ("postprocessing.pkl", "postprocessing.json")):
            left_out.append("its postprocessing, which removes components")
        said = self.dataset
        trained = checkpoints[0][1][0].get("trainer_name")
        return Credit(
            source=f"nnU-Net v2: {said.name or self.plans.dataset_name}, {self.name}, {trained or 'unknown trainer'}, folds "
            + ", ".join(fold for fold, _ in checkpoints),
            version=said.release,
            licence=said.licence,
            citation=tuple(text for text in (said.reference,) if text),
            left_out=tuple(left_out),
        )


def _checkpoint(files: Files, path: Path) -> tuple[Mapping[str, Any], Any]:
    """What a checkpoint holds, and its tensors by name. Nothing in it is executed."""
    from unet_export.conversion.weights import read_plain, weights_in

    local = files.local(path.relative_to(files.path).as_posix())
    held = read_plain(local)
    if not isinstance(held, Mapping) or not isinstance(held.get("network_weights"), Mapping):
        raise ModelError(f"{path} is no checkpoint of nnU-Net, it has no network_weights; get it again")
    return held, weights_in(local, {"network_weights": held["network_weights"]})


def _configuration_name(root: Path, checkpoints: list[tuple[str, Any]]) -> str:
    """What the checkpoints were trained as; else what the folder is called after."""
    names = set()
    for _, (held, _) in checkpoints:
        arguments = held.get("init_args")
        said = arguments.get("configuration") if isinstance(arguments, Mapping) else None
        names.add(said if isinstance(said, str) else root.name.rpartition("__")[2])
    if len(names) > 1:
        raise ModelError(
            f"{root}: its folds are of different configurations ({', '.join(sorted(names))}); use --folds N"
        )
    return names.pop()


def _supported(root: Path, name: str, found: Configuration) -> Configuration:
    if found.previous_stage:
        raise ModelError(
            f"{root}: {name} is the second stage of a cascade, which takes the labels of {found.previous_stage} as input; "
            f"import the folder of {found.previous_stage}, or of 3d_fullres"
        )
    return found


def _check_code(root: Path, plans: Plans, found: Configuration, wanted: Wanted) -> None:
    """Raise `ModelError` where plans name code of somebody's own that decides labels, unless that is to be left out."""
    own = [
        name
        for name, usual in ((found.preprocessor_name, "DefaultPreprocessor"), (plans.label_manager, "LabelManager"))
        if name not in (None, usual)
    ]
    if own and not wanted.uncertified:
        raise ModelError(
            f"{root}: {PLANS} names {' and '.join(own)}, which is code of its own and is not known here; run it with nnU-Net, or "
            "import it as if these were nnU-Net's usual ones: unet-engine import --uncertified"
        )
