"""Small checks of settings; what they raise is a ValueError that names the setting, the value and the remedy."""


def is_number(value: object) -> bool:
    """Whether it is a finite number; true and false are none."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and value == value and abs(value) < float("inf")
    )


def require_positive(name: str, value: object) -> None:
    """Refuse what is no number > 0."""
    if not is_number(value) or value <= 0:  # type: ignore[operator]
        raise ValueError(f"{name}={value!r} must be a number > 0.")


def require_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse what is not among the allowed words; the message lists them."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not known; choose one of {', '.join(allowed)}.")
