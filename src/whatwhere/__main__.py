from .base.processes import end_at_signals


def main() -> None:
    """Run the command line; a signal that comes while Python imports it, or ends, is no traceback."""
    end_at_signals()
    from .cli import main as run

    run()


if __name__ == "__main__":
    main()
