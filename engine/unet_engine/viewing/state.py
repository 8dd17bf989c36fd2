"""The state of the viewer as JSON, which is how Neuroglancer has it: layers, colours, where one begins to look. Plain
values; nothing here needs the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor, log2
from typing import Any

import numpy as np

from unet_engine.viewing.demand import Sight
from unet_engine.viewing.panes import Pane

PIXELS = 480
"""Of the screen that a volume fills at first; a plane, which has all of it, twice as many."""
_SHOWN = 16
"""Channels that are laid over one another."""
_NORMAL = {"xy": "z", "xz": "y", "yz": "x"}
_BACKGROUND = ("background", "bg", "outside", "none", "unlabelled", "unlabeled", "class 0")
Matrix = Sequence[Sequence[float]]


def scales(pane: Pane) -> tuple[tuple[float, ...], str]:
    """How large the voxels are that all is shown on, z, y, x, and in what unit."""
    return (pane.spacing, "m") if pane.known else (tuple(size / min(pane.spacing) for size in pane.spacing), "")


def dimensions(pane: Pane) -> dict[str, list[Any]]:
    """The axes of the viewer, x first."""
    spacing, unit = scales(pane)
    return {a: [size, unit] for a, size in zip(reversed(pane.volume.spatial), reversed(spacing), strict=True)}


def first(panes: Sequence[Pane]) -> dict[str, Any]:
    """Axes, where one looks first and how closely: all of the volume, as far as there are levels for it."""
    pane = panes[0]
    spacing, _ = scales(pane)
    shape, fine = pane.volume.shape, min(spacing)
    extent = [n * size for n, size in zip(shape, spacing, strict=True)]
    # a voxel of the coarsest level on a pixel: farther off the screen would be thousands of pieces
    closest = 2.0 ** floor(log2(pane.levels.coarsest) / len(shape))
    flat = len(shape) == 2 or shape[0] == 1
    return {
        "dimensions": dimensions(pane),
        "position": [n // 2 + 0.5 for n in reversed(shape)],
        "crossSectionScale": max(1e-3, min(max(extent[-2:]) / fine / (PIXELS * (1 + flat)), closest)),
        "projectionScale": max(extent) / fine * 1.5,
        "layout": "xy" if flat else "4panel",
        "prefetch": False,  # what is asked for is what is shown, and so what is computed
        "showAxisLines": not flat,
        **_upright(pane),
        "concurrentDownloads": 32,
    }


def _upright(pane: Pane) -> dict[str, Any]:
    """Of a body that says how it lies: its front and its head up, seen from the front in the picture of depth."""
    named = pane.place.orientation if len(pane.volume.shape) == 3 else None
    if named is None:
        return {}
    across, body = _turned(named, "P", "I"), _turned(named, "I", "P")
    return {"crossSectionOrientation": across, "projectionOrientation": body}


_BACK = {"P": "A", "A": "P", "I": "S", "S": "I"}


def _turned(named: str, down: str, away: str) -> list[float]:
    """The rotation, as a quaternion, that has the direction `down` of the body point down on the screen and `away` into
    it. named: where the voxels' z, y and x point."""
    rows = [[0.0, 0.0, 0.0] for _ in range(3)]
    for column, wanted in ((1, down), (2, away)):
        axis = next(a for a in range(3) if named[2 - a] in (wanted, _BACK[wanted]))
        rows[axis][column] = 1.0 if named[2 - axis] == wanted else -1.0
    found = np.array(rows)
    found[:, 0] = np.cross(found[:, 1], found[:, 2])
    return _quaternion(found)


def _quaternion(turn: np.ndarray[Any, Any]) -> list[float]:
    """Of a rotation matrix: x, y, z, w, the largest of them first found (Shepperd 1978)."""
    trace = float(np.trace(turn))
    squares = [1 + 2 * turn[i, i] - trace for i in range(3)] + [1 + trace]
    k = int(np.argmax(squares))
    q = np.zeros(4)
    q[k] = squares[k] ** 0.5
    pairs = ((2, 1), (0, 2), (1, 0))
    for i, (a, b) in enumerate(pairs):
        if k == 3:
            q[i] = (turn[a, b] - turn[b, a]) / q[3]
        elif i != k:
            q[i] = (turn[i, k] + turn[k, i]) / q[k]
    if k < 3:
        a, b = pairs[k]
        q[3] = (turn[a, b] - turn[b, a]) / q[k]
    return [round(float(x), 9) for x in q / 2]


def _rotation(q: Sequence[float]) -> np.ndarray[Any, Any]:
    """The matrix of a quaternion x, y, z, w."""
    v, w = np.array(q[:3], float), float(q[3])
    cross = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    found: np.ndarray[Any, Any] = np.eye(3) + 2 * w * cross + 2 * cross @ cross
    return found


def layer(pane: Pane, source: str, matrix: Matrix, properties: str | None = None) -> dict[str, Any]:
    """source: the URL of the pane; properties: that of what its labels are called."""
    sources: list[Any] = [{"url": source, **_transform(pane, matrix)}]
    if pane.kind != "labels":
        return {
            "type": "image", "name": pane.name, "source": sources, "shader": shader(pane),
            "opacity": 1.0 if pane.kind == "image" else 0.6,
            **({"blend": "default"} if pane.kind == "image" else {}),
            **_dimension(pane),
        }  # fmt: skip
    if properties:
        sources.append(properties)
    colours = {str(i): colour for i, colour in enumerate(pane.colours)}
    # what is not computed yet is 0, too
    hidden = pane.growing or not pane.names or pane.names[0].lower() in _BACKGROUND
    return {
        "type": "segmentation", "name": pane.name, "source": sources, "selectedAlpha": 0.45,
        "notSelectedAlpha": 0.12, "hideSegmentZero": hidden, **({"segmentColors": colours} if colours else {}),
    }  # fmt: skip


def _dimension(pane: Pane) -> dict[str, Any]:
    return {"channelDimensions": {"c^": [1, ""]}} if pane.volume.channels > 1 else {}


def _transform(pane: Pane, matrix: Matrix) -> dict[str, Any]:
    """From voxels of the pane to those that all is shown on. Both count from corners of voxels here, from middles in
    `matrix`; axes are the other way round."""
    n = len(matrix)
    full = np.asarray(matrix, float)
    turn, move = full[:, :n], full[:, n]
    if np.allclose(turn, np.eye(n)) and np.allclose(move, 0, atol=1e-6):
        return {}
    move = move + 0.5 - turn @ np.full(n, 0.5)
    rows = [[*map(float, turn[a, ::-1]), float(move[a])] for a in reversed(range(n))]
    names = list(reversed(pane.volume.spatial))
    axes: dict[str, list[Any]] = {a: [1, ""] for a in names}
    if pane.kind != "labels" and pane.volume.channels > 1:
        rows = [[*row[:n], 0.0, row[n]] for row in rows] + [[0.0] * n + [1.0, 0.0]]
        axes["c^"] = [1, ""]
    return {"transform": {"matrix": rows, "outputDimensions": axes}}


def on_axes(state: dict[str, Any], pane: Pane) -> dict[str, Any]:
    """`state` of a layer with the axes of transforms as large as those that all is shown on."""
    shown = dimensions(pane)
    for source in state["source"]:
        if isinstance(source, dict) and "transform" in source:
            axes = source["transform"]["outputDimensions"]
            axes.update({a: shown[a] for a in axes if a in shown})
    return state


def shader(pane: Pane) -> str:
    """How voxels of an image become colours: grey within the contrast, three channels of a picture as red, green and
    blue, or each channel in its colour, as bright as it is likely."""
    channels = pane.volume.channels
    if pane.kind == "probabilities":
        return _coloured(pane)
    low, high = pane.contrast or (0.0, 1.0)
    ends = f"range=[{low:.9g}, {high:.9g}]" if pane.volume.dtype.kind == "f" or pane.volume.dtype.itemsize == 8 else (
        f"range=[{floor(low)}, {max(floor(high), floor(low) + 1)}]"
    )  # fmt: skip
    if channels in (3, 4) and pane.volume.dtype == np.uint8:
        return (
            "void main() {\n  emitRGB(vec3(toNormalized(getDataValue(0)), toNormalized(getDataValue(1)), "
            "toNormalized(getDataValue(2))));\n}\n"
        )
    if channels == 1:
        return f"#uicontrol invlerp contrast({ends})\nvoid main() {{\n  emitGrayscale(contrast());\n}}\n"
    return (
        f"#uicontrol invlerp contrast({ends}, channel=[0])\n"
        "void main() {\n  emitGrayscale(contrast(getDataValue(0)));\n}\n"
    )


def _coloured(pane: Pane) -> str:
    """A channel called background is left out: where nothing else is likely, one sees the image."""
    volume = pane.volume
    many = volume.channels > 1
    scale = f" / {pane.one:.1f}" if pane.one != 1 else ""
    lines, names = [], pane.names
    for i in range(min(volume.channels, _SHOWN)):
        if many and i == 0 and names and names[0].lower() in _BACKGROUND:
            continue
        red, green, blue = (
            int((pane.colours[i] if i < len(pane.colours) else "#ffffff")[k : k + 2], 16) / 255 for k in (1, 3, 5)
        )
        if not (red or green or blue):
            red = green = blue = 1.0
        value = f"float(toRaw(getDataValue({i if many else ''}))){scale}"
        lines.append(f"  p = {value}; sum += p * vec3({red:.4f}, {green:.4f}, {blue:.4f}); top = max(top, p);\n")
    return (
        "#uicontrol float strength slider(min=0, max=1, default=1)\nvoid main() {\n"
        "  vec3 sum = vec3(0.0); float top = 0.0; float p = 0.0;\n" + "".join(lines)
        + "  emitRGBA(vec4(min(sum, vec3(1.0)), min(top, 1.0) * strength));\n}\n"
    )  # fmt: skip


def properties(names: Mapping[int, str]) -> dict[str, Any]:
    """What labels are called, as Neuroglancer reads it."""
    return {
        "@type": "neuroglancer_segment_properties",
        "inline": {
            "ids": [str(number) for number in names],
            "properties": [{"id": "label", "type": "label", "values": list(names.values())}],
        },
    }


_VIEW = ("dimensions", "position", "layout", "crossSectionScale", "crossSectionOrientation")


def view(state: Mapping[str, Any]) -> list[Any]:
    """What of a state says which voxels are shown."""
    return [state.get(key) for key in _VIEW]


def sight(state: Mapping[str, Any], pane: Pane, matrix: Matrix) -> Sight | None:
    """Where people look, in voxels of `pane`, which `matrix` takes to those that all is shown on; None where the state
    does not say it."""
    axes, position = list(state.get("dimensions") or ()), state.get("position")
    spatial = pane.volume.spatial
    if not isinstance(position, (list, tuple)) or len(position) != len(axes) or not set(spatial) <= set(axes):
        return None
    n = len(matrix)
    full = np.asarray(matrix, float)
    shown = np.array([float(position[axes.index(a)]) for a in spatial]) - 0.5
    try:
        at = np.linalg.solve(full[:, :n], shown - full[:, n]) + 0.5
    except np.linalg.LinAlgError:
        return None
    straight = np.count_nonzero(np.abs(full[:, :n]) > 1e-9) == n
    return Sight(tuple(map(float, at)), _planes(state, pane, full[:, :n]) if straight else ())


def _planes(state: Mapping[str, Any], pane: Pane, turn: np.ndarray[Any, Any]) -> tuple[int, ...]:
    """The axes of the pane that the planes which are shown stand on; none where they are oblique."""
    layout = state.get("layout")
    kind = str(layout.get("type", "") if isinstance(layout, Mapping) else layout or "")
    four = kind.startswith("4panel")
    shown = [normal for name, normal in _NORMAL.items() if four or kind.partition("-")[0] == name]
    spatial = pane.volume.spatial
    found = []
    for normal in shown:
        along = _rotation(state.get("crossSectionOrientation") or (0, 0, 0, 1))[:, "xyz".index(normal)]
        axis = "xyz"[int(np.argmax(np.abs(along)))]
        if np.abs(along).max() < 1 - 1e-6 or axis not in spatial:
            return ()
        # an axis that is shown is that axis of the pane which goes along it
        found.append(int(np.argmax(np.abs(turn[spatial.index(axis)]))))
    return tuple(found)
