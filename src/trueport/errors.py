"""Exceptions for what the *user* did wrong, or for what we did wrong. What happens to a model is an `Outcome`.

TrueportError
├── UsageError          exit 2: bad option, unreadable or unsafe input; says how to mend it
│   ├── BadModelError   exit 2: the file itself is damaged or not what it claims to be
│   └── UntrustedError  exit 2: the input runs code when it is loaded and --trust was not given
└── InternalError       exit 3: a bug of ours
"""

from __future__ import annotations


class TrueportError(Exception):
    """Base of everything that trueport raises on purpose. The message is one clear sentence."""

    exit_code = 3


class UsageError(TrueportError):
    """The request cannot be served as it stands; the message says what is wrong and how to mend it."""

    exit_code = 2


class BadModelError(UsageError):
    """A framework found the file damaged. For a file that a converter made, this is the converter's failure."""


class UntrustedError(UsageError):
    """Loading the input would run code from it, and the caller has not allowed that."""


class InternalError(TrueportError):
    """A broken promise inside trueport itself."""

    exit_code = 3
