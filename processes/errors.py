"""The error that a user can mend. A file of its own, as what raises it should not have to wait for torch."""

LONGEST = 3000  # letters of a paragraph


class UserError(Exception):
    """Something the user can mend: what was expected, what came, what to change, in one paragraph.

    The command-line programs print it without a traceback and exit with code 2. It stays one paragraph whatever was
    typed, or stands in a file: line breaks and other letters that no screen shows are written out, and of a long text
    there are its beginning and its end.
    """

    def __str__(self) -> str:
        text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in super().__str__())
        return text if len(text) <= LONGEST else f"{text[: LONGEST - 500]} … {text[-500:]}"
