"""What a run cost, from what an hour of the machines that ran it costs."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from unet_engine.errors import SettingsError

TERAVOXEL = 10**12


@dataclass(frozen=True)
class Rate:
    """Price of an hour of all machines that a run takes."""

    hour: float
    unit: str = ""
    """What it is counted in, e.g. ``EUR``; empty where nobody said."""

    @classmethod
    def of(cls, text: str) -> Rate:
        """``3.20``, ``3.20EUR`` or ``3.20 EUR``. Raises `SettingsError`."""
        match = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([^\W\d_]{0,12}|[$€£¥])\s*", text)
        try:
            value = float(match[1]) if match else math.nan
        except ValueError:
            value = math.nan
        if match is None or not math.isfinite(value):
            raise SettingsError(f"--rate {text!r}: give the price of an hour of the machines, e.g. 3.20EUR")
        return cls(value, match[2])

    def cost(self, seconds: float, voxels: int) -> dict[str, Any]:
        """Of a run that took so long and wrote so many voxels: ``price``, ``price_per_teravoxel`` (None for no
        voxels) and ``price_unit``."""
        price = self.hour * seconds / 3600
        per = price / voxels * TERAVOXEL if voxels else None
        return {
            "price": _few(price),
            "price_per_teravoxel": None if per is None else _few(per),
            "price_unit": self.unit,
        }

    def line(self, seconds: float, voxels: int) -> str:
        """The same in words."""
        cost, unit = self.cost(seconds, voxels), f" {self.unit}" if self.unit else ""
        per = cost["price_per_teravoxel"]
        return f"{cost['price']:.4g}{unit}" + ("" if per is None else f", {per:.4g}{unit} a teravoxel")


def _few(value: float) -> float:
    """Six digits: nobody knows the rate better."""
    return float(f"{value:.6g}")
