class UserError(ValueError):
    """Input that cannot be used: one sentence that says what, where and what to do.

    The command line prints it on standard error and exits with status 2; any other exception there is a defect.
    """


def nearest(word: str, candidates: list[str]) -> str:
    """Return `"; did you mean a, b?"` for the candidates closest to `word`, or `""` if none is close."""
    import difflib

    word = word.lower()
    beginning = sorted((name for name in candidates if name.startswith(word)), key=len) if word else []
    similar = difflib.get_close_matches(word, candidates, n=3, cutoff=0.6)
    matches = list(dict.fromkeys([*beginning, *similar]))[:3]
    return f"; did you mean {', '.join(matches)}?" if matches else ""
