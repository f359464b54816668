"""The store: one URL under which every manifest, shard, checkpoint and release lies."""

import dagster as dg

from millrace.storage import FsspecStorage


class Storage(dg.ConfigurableResource):  # type: ignore[type-arg]  # dagster's own idiom
    """A local folder, `s3://`, `gs://` or `abfs://`, or `https://` to read from.

    Keys come from the environment: docs/stores.md says which variables, and what is tested.
    """

    url: str

    def open(self) -> FsspecStorage:
        """The engine's storage on this URL."""
        return FsspecStorage(self.url)
