"""What an earlier life of this aggregator left of deployments, read off the state folder. Blocks."""

from __future__ import annotations

from aggregator.inference.deployed import Deployed
from aggregator.store.deployments import DeploymentFolders
from edge_attention.core.errors import DataLoss

__all__ = ["recalled"]


def recalled(folders: DeploymentFolders) -> list[Deployed]:
    """The deployments that served, of each name the newest; the others are removed.

    Raises:
        DataLoss: what is kept of one cannot be read; says what to do.
    """
    found: dict[str, Deployed] = {}
    replaced: list[Deployed] = []
    for kept in folders.recall():
        try:
            deployed = Deployed.recalled(kept.folder, kept.spec)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataLoss(
                f"what is kept of deployment {kept.folder.id} cannot be read ({error!r}); remove "
                f"{kept.folder.path}, and deploy the model again"
            ) from None
        before = found.get(deployed.name)
        # It was replaced, and had not gone yet.
        newer = before is None or (before.version, before.anew) < (deployed.version, deployed.anew)
        old = before if newer else deployed
        if old is not None:
            replaced.append(old)
        if old is not deployed:
            found[deployed.name] = deployed
    used = {digest for one in found.values() for digest in one.digests}
    for old in replaced:
        folders.remove(old.folder, old.digests - used)
    return list(found.values())
