"""Azure's blob storage, each request sent once."""

from typing import Any

from adlfs import AzureBlobFileSystem


class AzureFileSystem(AzureBlobFileSystem):  # type: ignore[misc]  # adlfs has no types
    """adlfs without attempts of its own."""

    def do_connect(self) -> None:
        """Connect as adlfs does, then take the second to fourth attempts from Azure's client."""
        super().do_connect()
        for policy in self.service_client._pipeline._impl_policies:
            if hasattr(policy, "total_retries"):
                policy.total_retries = 0

    async def _find(self, path: str, *more: Any, detail: bool = False, **options: Any) -> Any:
        found = await super()._find(path, *more, detail=detail, **options)
        if detail and isinstance(found, list):  # of a single file adlfs tells the name alone
            return {path: await self._info(path)}
        return found
