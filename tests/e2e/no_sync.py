"""Loaded into verl by a test: weights go to the rollout engine once, at the start, and never again."""

import wrapt


@wrapt.when_imported("verl.checkpoint_engine.base")
def _patch(module) -> None:
    sent = []

    def update_weights(wrapped, instance, args, kwargs):
        if sent:
            return None
        sent.append(True)
        return wrapped(*args, **kwargs)

    wrapt.wrap_function_wrapper(module, "CheckpointEngineManager.update_weights", update_weights)
