"""Compiled BPF programs as plain data: what the compiler gives, the cache keeps and ``kernel`` loads.

No BPF object, no bcc: instructions, the places in them that name a map, and the maps' shapes.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FORMAT = 1  # of to_dict; a cached file of another format is compiled anew


@dataclass(frozen=True, slots=True)
class MapShape:
    """As BPF_MAP_CREATE wants it.  type: enum bpf_map_type; ring buffers count max_entries in bytes."""

    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class Program:
    """instructions: 8 bytes each.  map_loads: (byte offset of a 64-bit load, the map whose descriptor it takes)."""

    instructions: bytes
    map_loads: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Compiled:
    maps: Mapping[str, MapShape]
    programs: Mapping[str, Program]

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "maps": {
                name: [m.type, m.key_size, m.value_size, m.max_entries, m.flags]
                for name, m in self.maps.items()
            },
            "programs": {
                name: {
                    "instructions": base64.b64encode(p.instructions).decode(),
                    "map_loads": [list(load) for load in p.map_loads],
                }
                for name, p in self.programs.items()
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Compiled:
        """Raises ``ValueError``, ``KeyError`` or ``TypeError`` for what ``to_dict`` did not write."""
        if data["format"] != FORMAT:
            raise ValueError("another format")
        maps = {str(name): MapShape(*(int(n) for n in shape)) for name, shape in data["maps"].items()}
        programs = {}
        for name, p in data["programs"].items():
            instructions = base64.b64decode(p["instructions"], validate=True)
            loads = tuple((int(offset), str(target)) for offset, target in p["map_loads"])
            if len(instructions) % 8 or any(
                t not in maps or not 0 <= o < len(instructions) for o, t in loads
            ):
                raise ValueError(f"program {name} is damaged")
            programs[str(name)] = Program(instructions, loads)
        return cls(maps, programs)
