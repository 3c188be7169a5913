"""Which public names does a change break? `make api`, or python tests/support/public_names.py GIT-REVISION.

Public are the names that the packages of PUBLIC list in `__all__`. A name that moved to another file and is still
listed is no break. The exit status is 1 when a name is gone or a call that worked before would fail.
"""

import sys

import griffe

NAMES = ["attention", "cost", "experiment", "explain", "insert", "models", "networks", "ops", "report"]
PUBLIC = ["whatwhere", *(f"whatwhere.{name}" for name in NAMES)]


def find(package: griffe.Module, path: str) -> griffe.Object | None:
    """Return the object that a dotted name stands for, or None where no definition is found."""
    try:
        found = package[path.removeprefix("whatwhere.")] if path != "whatwhere" else package
        return found.final_target if isinstance(found, griffe.Alias) else found
    except (KeyError, griffe.AliasResolutionError):
        return None


def exported(package: griffe.Module) -> set[str]:
    """Return the public names, each with the package that lists it."""
    modules = {path: find(package, path) for path in PUBLIC}
    return {f"{path}.{name}" for path, module in modules.items() for name in getattr(module, "exports", None) or []}


def main(revision: str) -> int:
    before = griffe.load_git("whatwhere", ref=revision, search_paths=["src"])
    after = griffe.load("whatwhere", search_paths=["src"])
    problems = {f"{name}: gone" for name in exported(before) - exported(after)}
    for name in exported(before) & exported(after):
        old, new = griffe.Module("public"), griffe.Module("public")
        same = f"{name}.{name.split('.')[-1]}"  # the function attend of the file attend.py hides the file
        old_object, new_object = (find(package, same) or find(package, name) for package in (before, after))
        if old_object and new_object:  # else a name that a module's __getattr__ answers
            old.members[old_object.name], new.members[old_object.name] = old_object, new_object
            breaks = griffe.find_breaking_changes(old, new)
            problems |= {f"{name}: {each.explain(griffe.ExplanationStyle.ONE_LINE)}" for each in breaks}
    print(*sorted(problems), f"{len(problems)} breaks of public names since {revision}", sep="\n")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
