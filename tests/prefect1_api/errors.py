"""Errors: what the local Prefect 1 API answers instead of data."""


class Invalid(Exception):
    """The document asks for what the schema does not have: nothing is executed, HTTP 400."""


class Refusal(Exception):
    """One field could not be done: it is null, and `errors` says why."""

    def __init__(self, message: str, code: str = "INTERNAL_SERVER_ERROR") -> None:
        super().__init__(message)
        self.message = message
        self.code = code
