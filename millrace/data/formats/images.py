"""Image files: each is a record whose label is its folder's name."""

from millrace.data.formats.opened import Found, Located, Opened


def read_image(opened: Opened) -> Found:
    """One record: the file as it is."""
    yield Located(opened.file.path, {"image": opened.whole(), **opened.folders()})
