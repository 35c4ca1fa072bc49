"""EnsembleService: what clients call about ensembles. Each method is a few lines over the recipe."""

from __future__ import annotations

from typing import Any

from aggregator.inference.ensembles.ensemble_models import lacking_of
from aggregator.inference.ensembles.kept_ensembles import KeptEnsemble, KeptEnsembles
from aggregator.inference.protocol.data_plane import DataPlane
from aggregator.trust.callers import owner_of
from aggregator.trust.endpoint import AuditLine, Endpoint
from edge_attention.core.messages import ensembles
from edge_attention.core.messages.ensembles import DeployedEnsemble, EnsembleTensor
from edge_attention.wire import services

__all__ = ["EnsembleApi"]

DEPLOYED = AuditLine("ensemble_deployed", lambda q, r: {"ensemble": q.name})
UNDEPLOYED = AuditLine("ensemble_undeployed", lambda q, r: {"ensemble": q.name})


class EnsembleApi:
    """Its methods."""

    def __init__(self, kept: KeptEnsembles, plane: DataPlane) -> None:
        self._kept = kept
        self._plane = plane

    def endpoints(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint(services.DEPLOY_ENSEMBLE, self.deploy, "operator", DEPLOYED),
            Endpoint(services.UNDEPLOY_ENSEMBLE, self.undeploy, "operator", UNDEPLOYED),
            Endpoint(services.LIST_ENSEMBLES, self.list, "viewer"),
        )

    async def deploy(
        self, request: ensembles.DeployEnsembleRequest, call: Any
    ) -> ensembles.DeployEnsembleResponse:
        made = await self._kept.deploy(request.name, request.text, owner_of(call))
        return ensembles.DeployEnsembleResponse(self._described(made))

    async def undeploy(
        self, request: ensembles.UndeployEnsembleRequest, call: Any
    ) -> ensembles.UndeployEnsembleResponse:
        return ensembles.UndeployEnsembleResponse(self._described(await self._kept.undeploy(request.name)))

    async def list(
        self, request: ensembles.ListEnsemblesRequest, call: Any
    ) -> ensembles.ListEnsemblesResponse:
        return ensembles.ListEnsemblesResponse(tuple(self._described(one) for one in self._kept))

    def _described(self, kept: KeptEnsemble) -> DeployedEnsemble:
        inputs, outputs = (
            tuple(EnsembleTensor(one.name, one.datatype, one.shape) for one in tensors)
            for tensors in (kept.tensors.inputs, kept.tensors.outputs)
        )
        return DeployedEnsemble(
            kept.name,
            kept.version,
            kept.ensemble.how.value,
            tuple(member.name for member in kept.ensemble.members),
            inputs,
            outputs,
            kept.created,
            kept.owner,
            lacking_of(kept, self._plane),
        )
