class UserError(ValueError):
    """Input that cannot be used: one sentence that says what, where and what to do.

    The command line prints it on standard error and exits with status 2; any other exception there is a defect.
    """


def said(error: BaseException | None, most: int = 200) -> str:
    """Return what another library's error says, in one line of `most` letters; its type where it says nothing."""
    return (" ".join(str(error).split()) or type(error).__name__)[:most]


def check_integer(name: str, value: int, least: int = 1, most: int | None = None) -> None:
    """Raise UserError unless `value` is an integer from `least` to `most`, by default 2**31 - 1."""
    last = 2**31 - 1 if most is None else most
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= last:
        if most is not None:
            raise UserError(f"{name} must be an integer from {least} to {most:,}, got {value!r}")
        kind = "a positive integer" if least == 1 else f"an integer of at least {least} and"
        raise UserError(f"{name} must be {kind} below 2**31, got {value!r}")


def check_factor(name: str, value: float, most: float) -> None:
    """Raise UserError unless `value` is a number above 0 and at most `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
        raise UserError(f"{name} must be a number above 0 and at most {most:g}, got {value!r}")


def nearest(word: str, candidates: list[str]) -> str:
    """Return `"; did you mean a, b?"` for the candidates closest to `word`, or `""` if none is close."""
    import difflib

    word = word.lower()
    beginning = sorted((name for name in candidates if name.startswith(word)), key=len) if word else []
    similar = difflib.get_close_matches(word, candidates, n=3, cutoff=0.6)
    matches = list(dict.fromkeys([*beginning, *similar]))[:3]
    return f"; did you mean {', '.join(matches)}?" if matches else ""
