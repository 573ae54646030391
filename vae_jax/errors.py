"""The one exception for what a user can put right."""


class UserError(ValueError):
    """Bad input: a configuration, a file, a folder or an option.

    Its message is one line that names what, where, what was expected and what was found. The command line prints
    it and exits with code 2; library code lets it pass.
    """


class Diverged(UserError):
    """A training whose loss, gradient or parameters are not finite any more."""


class Stopped(Exception):
    """A training that was asked to stop, and did once its state was saved; the message tells where it stands."""
