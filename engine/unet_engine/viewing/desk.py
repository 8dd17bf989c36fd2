"""The viewer: a server on this machine alone, panes in it, and what is told to whoever looks."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from unet_engine.errors import OutputError, UnetEngineError, first_line
from unet_engine.output.header import read_header
from unet_engine.plan.box import Box
from unet_engine.viewing import state as states
from unet_engine.viewing import tables
from unet_engine.viewing.demand import Sight
from unet_engine.viewing.panes import Pane, together
from unet_engine.volumes.base import Array

LOOPBACK = "127.0.0.1"
PAUSE = 0.7
"""Seconds between two times that the viewer is told to ask again."""
GROWN = 2.0
"""Seconds between two looks at outputs that others write."""


class Desk:
    """An open viewer. Whoever has its URL gets in, and only from this machine."""

    def __init__(self, panes: Sequence[Pane], asked: str | None = None, port: int = 0) -> None:
        """asked: the path of the pane whose pieces are computed as they are asked for. Raises `UnetEngineError` where
        Neuroglancer is not installed, `OutputError` where the port is taken."""
        neuroglancer = neuroglancer_module()
        self.panes = list(panes)
        self._asked = next((pane for pane in self.panes if pane.path == asked), None)
        self._matrices = together(self.panes)
        self.ask: Callable[[Box, tuple[int, ...]], None] = lambda box, factors: None
        """Told of each piece of the asked pane that the viewer wants."""
        self.looked: Callable[[Sight | None], None] = lambda sight: None
        """Told where people look now."""
        self.renewed: Callable[[], None] = lambda: None
        """Told before the viewer is told to ask again."""
        self._token = secrets.token_hex(24)
        neuroglancer.set_server_bind_address(LOOPBACK, port)
        try:
            # given a token, the package gives no credentials of the user's to pages
            self._viewer = neuroglancer.Viewer(token=self._token)
        except OSError as error:
            raise OutputError(f"--port {port}: {first_line(error)}; choose another one, or none") from error
        self._server = neuroglancer.server
        self._pages: dict[str, tuple[str, Callable[[str], str | None]]] = {}
        self._add_pages()
        self._served = {pane.name: self._volume_of(pane) for pane in self.panes}
        self._changed = threading.Event()
        self._moved = 0.0
        self._over = threading.Event()
        self._viewer.set_state(self._first())
        self._view = states.view(self._viewer.shared_state.raw_state)
        self._viewer.shared_state.add_changed_callback(self._on_state)
        self._threads = [threading.Thread(target=self._tell, daemon=True, name="viewer")]
        if any(pane.growing and pane is not self._asked for pane in self.panes):
            self._threads.append(threading.Thread(target=self._watch, daemon=True, name="growing"))
        for thread in self._threads:
            thread.start()

    @property
    def url(self) -> str:
        return str(self._viewer.get_viewer_url())

    def page(self, name: str) -> str:
        """The URL of a page that was added."""
        return f"{self._server.get_server_url()}/u/{self._token}/{name}"

    def facts(self) -> dict[str, Any]:
        """As JSON values."""
        return {"url": self.url, "panes": [pane.facts() for pane in self.panes]}

    # --- layers ---

    def _volume_of(self, pane: Pane) -> Any:
        from unet_engine.viewing.served import ServedVolume

        spacing, unit = states.scales(self.panes[0])
        return ServedVolume(pane, spacing, unit, self._ask if pane is self._asked else None)

    def _ask(self, box: Box, factors: tuple[int, ...]) -> None:
        self.ask(box, factors)

    def _first(self) -> dict[str, Any]:
        layers = []
        for pane, matrix in zip(self.panes, self._matrices, strict=True):
            source = self._viewer.volume_manager.register_volume(self._served[pane.name])
            names = self._names(pane) if pane.kind == "labels" and pane.names else None
            layers.append(states.on_axes(states.layer(pane, source, matrix, names), self.panes[0]))
        return {**states.first(self.panes), "layers": layers}

    def _names(self, pane: Pane) -> str:
        place = f"names{len(self._pages)}"
        said = json.dumps(states.properties(dict(enumerate(pane.names))))
        self._pages[f"{place}/info"] = ("application/json", lambda _: said)
        return f"precomputed://{self.page(place)}"

    def overlay(self, over: Callable[[Box, tuple[int, ...], Array], None]) -> None:
        """Have `over` change what is answered of the asked pane, see `ServedVolume.overlaid`."""
        if self._asked:
            self._served[self._asked.name].overlaid(over)

    def say(self, text: str) -> None:
        """A line at the edge of the viewer; the last one said stays."""

        def put(config: Any) -> None:
            config.status_messages["unet-engine"] = text

        self._viewer.config_state.retry_txn(put, lock=True)

    def list_objects(self, pane: Pane, entries: Sequence[tables.Entry]) -> str:
        """Add a page with a link for each object of `pane`; returns its URL."""
        said = tables.page(f"Objects of {pane.name}", entries)
        known = {str(entry.number): entry for entry in entries}

        def go(rest: str) -> str | None:
            entry = known.get(rest)
            return None if entry is None else self._go(pane, entry)

        self._pages["objects"] = ("text/html; charset=utf-8", lambda _: said)
        self._pages["objects/*"] = ("redirect", go)
        return self.page("objects")

    def _go(self, pane: Pane, entry: tables.Entry) -> str:
        """Have the viewer show an object; returns where to see it."""
        import numpy as np

        matrix = np.asarray(self._matrices[self.panes.index(pane)])
        n = len(matrix)
        at = matrix[:, :n] @ (np.array(entry.at) - 0.5) + matrix[:, n] + 0.5

        def put(state: Any) -> None:
            state.position = [float(x) for x in reversed(at)]
            for one in state.layers:
                if one.name == pane.name:
                    one.layer.segments = [entry.number]
                    one.layer.tab = "segments"
            state.selected_layer.layer = pane.name
            state.selected_layer.visible = True

        self._viewer.retry_txn(put)
        return self.url

    # --- what changes ---

    def changed(self) -> None:
        """The asked pane has other voxels now: soon the viewer asks again."""
        self._changed.set()

    def _on_state(self) -> None:
        if self._asked is None:
            return
        view = states.view(self._viewer.shared_state.raw_state)
        if view == self._view:  # a page that has loaded tells the state that it was given
            return
        self._view = view
        self._moved = time.monotonic()
        self.looked(self.sight())

    def sight(self) -> Sight | None:
        """Where people look, in voxels of the asked pane."""
        if self._asked is None:
            return None
        matrix = self._matrices[self.panes.index(self._asked)]
        return states.sight(self._viewer.shared_state.raw_state, self._asked, matrix)

    def _tell(self) -> None:
        """Whatever changed, the viewer is told at most every `PAUSE`, and once nobody moved for that long."""
        told = 0.0
        while not self._over.wait(0.05):
            now = time.monotonic()
            still = self._moved and now - self._moved > PAUSE
            if now - told < PAUSE or not (self._changed.is_set() or still):
                continue
            self._changed.clear()
            self._moved = 0.0 if still else self._moved
            told = now
            self.renewed()
            if self._asked:
                self._served[self._asked.name].invalidate()

    def _watch(self) -> None:
        """Outputs that others write are shown as they grow."""
        growing = [pane for pane in self.panes if pane.growing and pane is not self._asked]
        while growing and not self._over.wait(GROWN):
            for pane in list(growing):
                header = read_header(pane.path) or read_header(pane.path.rpartition("/")[0]) or {}
                if header.get("complete", True):
                    growing.remove(pane)
                self._served[pane.name].invalidate()

    # --- pages of our own, on the same server ---

    def _add_pages(self) -> None:
        import tornado.web

        desk = self

        class Page(tornado.web.RequestHandler):
            def get(self, token: str, name: str) -> None:
                found = desk.answer(token, name)
                if found is None:
                    self.send_error(404)
                    return
                kind, text = found
                self.set_header("Cache-Control", "no-store")
                self.set_header("Referrer-Policy", "no-referrer")
                if kind == "redirect":
                    self.redirect(text)
                    return
                self.set_header("Content-Type", kind)
                self.finish(text)

        server = self._server.global_server
        server.loop.call_soon_threadsafe(server.app.add_handlers, r".*", [(r"^/u/([0-9a-f]+)/(.+)$", Page)])

    def answer(self, token: str, name: str) -> tuple[str, str] | None:
        """Kind and text of the page `name`; None for what there is not, whoever asks without the token included."""
        if not secrets.compare_digest(token, self._token):
            return None
        found = self._pages.get(name) or self._pages.get(f"{name.rpartition('/')[0]}/*")
        text = found and found[1](name.rpartition("/")[2])
        return None if found is None or text is None else (found[0], text)

    def close(self) -> None:
        """Nobody is let in any more."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._server.stop()


def neuroglancer_module() -> Any:
    """The viewer. Raises `UnetEngineError` where it is not installed."""
    try:
        import neuroglancer
        import neuroglancer.server
    except ImportError as error:
        raise UnetEngineError(
            f"the viewer needs the package neuroglancer ({first_line(error)}); pip install 'unet-engine[view]'"
        ) from error
    return neuroglancer
