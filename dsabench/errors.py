"""Errors that a user can cause, one class a place. Each message says what was wrong and what would be right."""


class DsabenchError(ValueError):
    """Base of every error that a user's input, files or machine caused; shown without a traceback."""


class SpecError(DsabenchError):
    """A config file, an override or a flag does not describe a valid experiment."""


class DataError(DsabenchError):
    """A corpus or tokenizer is missing, unreadable, or too small for the spec."""


class CheckpointError(DsabenchError):
    """A model that others trained cannot be read, or one of dsabench's cannot be written as theirs."""


class StoreError(DsabenchError):
    """A run store cannot be read or written, or a newer dsabench wrote it."""


class ResultsError(DsabenchError):
    """A file of results cannot be written."""


class ScopeError(DsabenchError):
    """A choice of runs (a sweep, a condition) names nothing, selects nothing, or cannot be read."""


class DeviceError(DsabenchError):
    """The device that the spec asks for is not on this machine, or too small for the run."""


class LeakError(DsabenchError):
    """An attention sees later tokens, other rows or chance: what it would learn means nothing, so it is not trained."""
