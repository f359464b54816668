"""Image files: each is a record whose label is its folder's name."""

from millrace.data.formats.opened import Found, Located, Opened


def read_image(opened: Opened) -> Found:
    """One record: the file as it is."""
    folder = opened.file.url.rsplit("/", 2)
    label = folder[-2] if len(folder) == 3 else ""
    path = opened.file.path
    yield Located(path, {"image": opened.whole(), "label": label, "path": path})
