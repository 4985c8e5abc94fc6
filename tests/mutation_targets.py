"""What `make mutants` changes, and the test files that ought to notice."""

from dataclasses import dataclass

SLOW = ("tests/host/shims/test_trainer_mode.py::test_the_stock_trainer_is_what_other_algorithms_get",)
HOSTED = (
    "tests/host/worker/test_policy_loss.py",
    "tests/host/worker/test_f_hal_loss.py",
)  # the losses as verl calls them


@dataclass(frozen=True)
class Target:
    """A file, the test files that ought to notice a change of it, and the functions to change (all if none named)."""

    file: str
    tests: tuple[str, ...]
    functions: tuple[str, ...] = ()


HOST = "fgrpo_plugin/host/"
ROWS, SOURCE = "tests/host/driver/test_row_numbers.py", "tests/host/driver/test_preference_source.py"
METRICS, PRESETS = "tests/host/test_metrics.py", "tests/test_presets.py"
TARGETS = (
    Target(HOST + "metrics.py", (METRICS, ROWS, *HOSTED)),
    Target(HOST + "preference_metrics.py", (METRICS, "tests/host/test_preference_metrics.py", *HOSTED)),
    Target(HOST + "worker/policy_loss.py", (METRICS, *HOSTED)),
    *(
        Target(f"fgrpo_plugin/losses/{name}.py", ("tests/losses", "tests/test_special_cases.py", METRICS, *HOSTED))
        for name in ("reward", "sides", "f_grpo", "fdo", "kldo", "f_hal", "slopes", "checks")
    ),
    Target("fgrpo_plugin/advantages.py", ("tests/test_advantages.py", ROWS, PRESETS, HOSTED[0])),
    Target("fgrpo_plugin/preference/sampler.py", ("tests/preference/test_sampler.py", SOURCE)),
    Target(
        "fgrpo_plugin/preference/reference_cache.py",
        ("tests/preference/test_reference_cache.py", SOURCE),
    ),
    Target(
        "fgrpo_plugin/eval/separation.py",
        ("tests/eval/test_separation.py",),
        (
            *("__post_init__", "least_prompts", "bhattacharyya", "_cholesky", "_log_det", "shrunk", "projected"),
            *("distances", "_moments", "separation"),
        ),
    ),
    Target(
        "fgrpo_plugin/eval/separation_report.py",
        ("tests/eval/test_separation_report.py",),
        ("largest", "model_table", "layer_table", "_distance", "notes", "as_json", "settings_line"),
    ),
    *(
        Target(f"fgrpo_plugin/preference/{name}.py", (f"tests/preference/test_{name}.py",))
        for name in ("ranking", "model_log_probs")
    ),
    Target("fgrpo_plugin/intervals.py", ("tests/test_intervals.py",)),
    Target(HOST + "driver/preference_source.py", (SOURCE,), ("differences_of",)),
    Target(HOST + "driver/run_length.py", ("tests/host/driver/test_run_length.py",)),
    Target(HOST + "settings/batches.py", ("tests/host/settings/test_batches.py",)),
    Target("fgrpo_plugin/config.py", ("tests/test_config.py", PRESETS, *HOSTED)),
    Target("fgrpo_plugin/typed_settings.py", ("tests/test_typed_settings.py",)),
    Target("fgrpo_plugin/preference/config.py", ("tests/preference/test_config.py",)),
    Target(
        HOST + "driver/rows.py",
        (ROWS, "tests/host/driver/test_rows.py", METRICS, *HOSTED),
        ("row_numbers", "row_sums", "_flat"),
    ),
    Target(
        HOST + "driver/rows.py",
        ("tests/host/driver/test_rows.py", METRICS, HOSTED[1]),
        ("minibatch_of_row", "on_policy_fields"),
    ),
    Target(HOST + "driver/seeded_rollouts.py", ("tests/host/driver/test_seeded_rollouts.py",), ("seed_of",)),
    Target(
        HOST + "driver/step_times.py",
        ("tests/host/driver/test_step_times.py",),
        ("slow_after", "end_step_time", "_seconds", "say_slow"),
    ),
    Target(HOST + "worker/weight_sockets.py", ("tests/host/worker/test_weight_sockets.py",), ("of_this_run",)),
    Target("fgrpo_plugin/manifest.py", ("tests/test_manifest.py",)),
    Target("fgrpo_plugin/replay/recompute.py", ("tests/replay",), ("recompute", "_row", "_bad_inputs")),
    Target(
        HOST + "driver/joining.py", ("tests/host/driver/test_joining.py", METRICS, HOSTED[1]), ("preference_numbers",)
    ),
)
