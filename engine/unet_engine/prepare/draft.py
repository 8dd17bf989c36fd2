"""From decisions to a plan and a job: the grid of windows, the blocks, what the output looks like. Nothing is fitted to
memory yet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from unet_engine.backends.base import Network
from unet_engine.errors import PlanError
from unet_engine.model.spec import ModelSpec
from unet_engine.output.label import Label
from unet_engine.output.layout import Layout
from unet_engine.pipeline.job import Job
from unet_engine.plan.fitting import lattice_of
from unet_engine.plan.grid import AxisGrid
from unet_engine.plan.memory import Sizes
from unet_engine.plan.plan import Plan
from unet_engine.plan.sizing import NO_MEMORY, default_block, default_chunk, device_block
from unet_engine.prepare.crop import in_chunks
from unet_engine.prepare.decisions import Decisions, Tiling
from unet_engine.prepare.identity import identity
from unet_engine.prepare.survey import Survey
from unet_engine.volumes.base import Volume
from unet_engine.volumes.cropped import Cropped
from unet_engine.volumes.normalize import Scaling
from unet_engine.volumes.resampled import Nearest, nearest
from unet_engine.volumes.turned import as_stored, turn_of


def grid(survey: Survey, tiling: Tiling) -> tuple[AxisGrid, ...]:
    """One axis per spatial axis of the volume; axes the model does not have are walked plane by plane."""
    spec, shape = survey.model.spec, survey.volume.shape
    planes = len(shape) - len(spec.axes)
    return tuple(
        AxisGrid(size, 1, 1, 0, tiling.blend) if a < planes else _along(spec, tiling, a - planes, size)
        for a, size in enumerate(shape)
    )


def _along(spec: ModelSpec, tiling: Tiling, a: int, size: int) -> AxisGrid:
    """The windows along axis `a` of the model, of `size` voxels."""
    window, margin, blend = tiling.window[a], spec.margin[a], tiling.blend
    if tiling.shared is None:
        assert tiling.overlap is not None
        return AxisGrid.with_overlap(size, window - 2 * margin, tiling.overlap, margin, blend)
    lattice = lattice_of(spec.window_step[a], window)
    return AxisGrid.evenly(size, window - 2 * margin, tiling.shared[a], margin, blend, lattice)


def windows_per_block(survey: Survey, tiling: Tiling) -> int:
    """Windows of a default block: batches divide it."""
    return prod(blocks_of(survey, grid(survey, tiling)))


def blocks_of(survey: Survey, axes: tuple[AxisGrid, ...]) -> tuple[int, ...]:
    """Windows per default block. The simulated GPU has those of the CPU, whose bytes it is to give."""
    sized = device_block if survey.devices[0].startswith("cuda") else default_block
    return sized(axes, survey.model.blended)


MOST_WINDOWS = 2**22
"""Along an axis: their blocks are listed."""


@dataclass(frozen=True)
class Draft:
    """What plans are made from, whatever is tried: the survey, the network that is open, and what the volume's samples
    say."""

    survey: Survey
    network: Network
    scale: Scaling
    fingerprint: str

    def plan(self, decisions: Decisions) -> Plan:
        """A plan of default blocks in a single column, not named yet; fitting shrinks them where it must and deals them
        into columns."""
        survey, spec, window = self.survey, self.survey.model.spec, decisions.tiling.window
        axes = grid(survey, decisions.tiling)
        block = blocks_of(survey, axes)
        chunk = default_chunk(axes, block, decisions.back)
        backwards = survey.turn.backwards if survey.turn and any(survey.turn.backwards) else ()
        plan = Plan(
            names=survey.volume.spatial,
            axes=axes,
            roi=in_chunks(decisions.roi, decisions.asked, chunk, backwards) if decisions.asked else decisions.roi,
            block=block,
            chunk=chunk,
            cuts=((),) * len(axes),
            padding=survey.settings.padding_mode,
            memory=NO_MEMORY,
            facts={},
            flops_per_window=None if spec.flops is None else round(spec.flops * prod(window) / prod(spec.window)),
            part=decisions.part,
            image=survey.image,
            back=decisions.back,
            calls=len(decisions.poses) * len(survey.model.networks),
            backwards=backwards,
        )
        for axis, count in zip(plan.names, plan.window_range.shape, strict=True):
            if count > MOST_WINDOWS:
                raise PlanError(
                    f"{survey.volume.path} has {count:,} windows along {axis}, and {MOST_WINDOWS:,} are planned at "
                    "most; use a larger --window, a smaller --overlap, or an --roi"
                )
        return plan

    def named(self, plan: Plan, decisions: Decisions) -> Plan:
        """The same with all that decides the bytes, and so its digest."""
        return replace(plan, facts=identity(self.survey, decisions, self.network, self.scale, self.fingerprint))

    def job(self, decisions: Decisions, plan: Plan) -> Job:
        """What workers do of `plan`, which was made of these `decisions`."""
        survey, settings = self.survey, self.survey.settings
        return Job(
            plan=plan,
            volume=survey.place,
            volume_axes=survey.scan.opened_by_axes,
            pick=survey.pick,
            model=survey.model,
            backend=survey.backend,
            setup=self.network.setup,
            scaling=self.scale,
            kind=decisions.kind,
            out=survey.out,
            layout=_layout(survey, decisions, plan),
            replace_nonfinite=settings.replace_nonfinite,
            mask=settings.mask,
            outside=survey.fill(decisions.kind, decisions.dtype),
            missing=survey.scan.missing,
            whole=settings.nodata == "none",
            profiled=settings.profile is not None,
            begun=survey.begun,
            strict=settings.strict,
            durable=settings.durable,
            poses=decisions.poses,
            turn=survey.turn,
            crop=survey.crop,
            kept_of_crop=survey.kept,
            extremes=survey.extremes,
            holes=survey.holes,
            cells=survey.cells,
        )

    def sizes(self, job: Job, decoders: int) -> Sizes:
        """Bytes that the memory prediction needs, where so many chunks are decoded at once."""
        volume, scan, mask = self.survey.volume, self.survey.scan, self.survey.meant
        # of values that say that nothing was measured: which channels have one, one value and all of them
        valid = scan.validity is not None or scan.gaps is not None
        found = 2 * scan.channels + 1 if job.missing or valid else 0
        again = bool(job.missing or scan.gaps is not None) and job.outside is not None
        emptied = 2 * scan.channels + 2 if job.scaling.filled else 0
        return Sizes(
            raw=volume.voxel_bytes,
            sums=4 * self.survey.model.blended,
            out=job.layout.voxel_bytes,
            # of a mask on the scan's grid what is read, and which of it is inside, twice
            source=scan.voxel_bytes + 4 * scan.channels + found + emptied + (mask.reading_bytes + 2 if mask else 0),
            scan=scan.voxel_bytes if job.resamples_on_device else 0,
            decoding=decoders * scan.chunk_bytes * (1 + (again or valid)),
            meant=mask.voxel_bytes + bool(job.missing or valid) + bool(self.survey.cells),
            looking=found + mask.reading_bytes,
            threads=self.network.setup.threads,
            outside=0 if job.outside is None
            else 1 + bool(self.survey.cells) + mask.reading_bytes + (scan.voxel_bytes + found if again else 0),
        )  # fmt: skip


def _layout(survey: Survey, decisions: Decisions, plan: Plan) -> Layout:
    """Of an output that lies as the volume is stored, however windows are cut."""
    spec, turn, crop = survey.model.spec, survey.turn, survey.crop
    own_grid = survey.grids and not decisions.back
    volume = _as_stored(survey.scan) if own_grid else as_stored(survey.scan)
    if survey.grids and own_grid:
        image = survey.grids.image
        volume = Nearest(volume, nearest(turn.stored(image) if turn else image))
    origin = crop.lo if crop and not own_grid else (0,) * len(plan.axes)
    written, roi = plan.roi.shift(origin), (decisions.asked or plan.roi).shift(origin)
    if turn:
        written, roi = turn.of(volume.shape).stored_box(written), turn.of(volume.shape).stored_box(roi)
    spacing = volume.spacing or (1.0,) * len(plan.axes)
    return Layout(
        names=plan.names,
        stored=volume.stored_spatial,
        shape=roi.shape,
        chunk=turn.stored(plan.chunk) if turn else plan.chunk,
        channels=None if decisions.kind == "labels" else spec.channels_out,
        dtype=decisions.dtype,
        spacing=spacing,
        translation=tuple(t + s * l for t, s, l in zip(volume.translation, spacing, roi.lo, strict=True)),
        unit=volume.unit,
        classes=spec.classes,
        frame=volume.frame.moved(roi.lo) if volume.frame else None,
        turn=turn and turn.of(written.shape),
        start=None if own_grid else roi.lo,
        begin=written.relative_to(roi.lo).lo if written != roi else None,
        label=Label(spec.class_names, spec.colours or ()) if decisions.kind == "labels" else None,
    )


def _as_stored(scan: Volume) -> Volume:
    """What is seen of the scan, as it lies in its file."""
    if not isinstance(scan, Cropped):
        return as_stored(scan)
    turn = turn_of(scan)
    return Cropped(as_stored(scan), turn.stored_box(scan.box) if turn else scan.box)
