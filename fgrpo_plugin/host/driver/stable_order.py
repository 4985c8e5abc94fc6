"""Deterministic mode: rows in the order of their prompts, not in the order in which they end.

Sums over them are then the same to the bit.
"""

from typing import Any

from fgrpo_plugin.host.settings.determinism import is_deterministic


class StableOrder:
    """Mixed in front of a verl trainer: in deterministic mode its replay buffer gives rows in the prompts' order."""

    config: Any
    agent_loop_manager: Any

    def _build_replay_buffer(self) -> Any:
        buffer = super()._build_replay_buffer()  # type: ignore[misc]
        if is_deterministic(self.config):
            sample = buffer.sample

            def in_order(*args: Any, **kwargs: Any) -> Any:
                batch, metrics = sample(*args, **kwargs)
                places = self.agent_loop_manager.places
                batch.reorder(sorted(range(len(batch)), key=lambda row: row_place(batch.keys[row], places)))
                return batch, metrics

            buffer.sample = in_order
        return buffer


def row_place(key: str, places: dict[str, int]) -> tuple[int, int, int]:
    """Return where a row of verl's queue belongs: its prompt's place, its response's number, its output's.

    Args:
        key: verl's, ``{uid}_{response}_{output}``.
        places: uid -> place of its prompt.
    """
    uid, response, output = key.rsplit("_", 2)
    return places[uid], int(response), int(output)
