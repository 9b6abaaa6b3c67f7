"""The process of `qlora`: wherever Ctrl+C falls, from here to the last line, it ends without a traceback.

Imports nothing before it is ready for that; what takes seconds to import comes after the first words, `cli`, which does
the work.
"""

import signal
import sys


def main() -> int:
    """Run the command line, and keep the interpreter's own end undisturbed."""
    shown = sys.unraisablehook

    def show(unraisable: "sys.UnraisableHookArgs") -> None:
        """Keep quiet about a Ctrl+C that falls into a finaliser, of which Python would print a traceback."""
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            shown(unraisable)

    sys.unraisablehook = show
    try:
        if sys.argv[1:2] == ["train"]:
            from .first_words import greet

            greet(sys.argv[2:])
        from .cli import main as run

        return run()
    except KeyboardInterrupt:  # while modules were being imported
        sys.stderr.write("interrupted\n")
        return 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
