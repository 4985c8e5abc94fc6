"""Loaded into verl by a test: a model of random weights calls a tool, and what the loss was given is written down."""

import os
from pathlib import Path

import torch
import wrapt

DUMP = "FGRPO_TEST_DUMP"
"""Environment variable: the folder for what the loss was given of on-policy rows."""


@wrapt.when_imported("verl.experimental.agent_loop.tool_parser")
def _parser(module) -> None:
    class EveryOtherTurn(module.ToolParser):
        """A turn whose tokens have an even sum calls the tool; every eighth token ends a turn."""

        @property
        def stop_token_ids(self):
            return list(range(7, 264, 8))

        async def extract_tool_calls(self, responses_ids, tools=None):
            calls = [] if sum(responses_ids) % 2 else [module.FunctionCall(name="look_up", arguments='{"key": "x"}')]
            return self.tokenizer.decode(responses_ids), calls

    module.ToolParser.register("every_other_turn")(EveryOtherTurn)


@wrapt.when_imported("fgrpo_plugin.host.worker.policy_loss")
def _dump(module) -> None:
    folder = os.environ.get(DUMP)
    if not folder:
        return

    def write_down(wrapped, instance, args, kwargs):
        rows = args[0]
        names = ("log_prob", "ref_log_prob", "mask", "advantage", "denominator")
        own = slice(None) if rows.preferences is None else ~rows.preferences.rows
        seen = {name: getattr(rows, name).detach()[own].clone() for name in names}
        number = len(list(Path(folder).iterdir()))
        torch.save(seen, Path(folder) / f"{number:04}.pt")
        return wrapped(*args, **kwargs)

    wrapt.wrap_function_wrapper(module, "_policy_loss", write_down)
