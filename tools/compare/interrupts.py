"""Ctrl-C waits while what was measured is being kept."""

import contextlib

_held = _pending = False


def handler(*_):
    """For signals that end the run."""
    global _pending
    if not _held:
        raise KeyboardInterrupt
    _pending = True


@contextlib.contextmanager
def held():
    """An interruption within is raised at the end, or where `allowed` says."""
    global _held, _pending
    _held = True
    try:
        yield
    finally:
        _held = False
    if _pending:
        _pending = False
        raise KeyboardInterrupt


@contextlib.contextmanager
def allowed():
    """Within `held`, around what takes long."""
    global _held, _pending
    before, _held = _held, False
    try:
        if _pending:
            _pending = False
            raise KeyboardInterrupt
        yield
    finally:
        _held = before
