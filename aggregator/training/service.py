"""TrainingService: what clients call about runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from aggregator.bounds.bounds import DOWNLOADS, EXPORTS, PLANNING, PREDICTED_SAMPLES, WATCHES
from aggregator.bounds.budget import Budgets
from aggregator.bounds.turns import Turns
from aggregator.engine.listed import listed
from aggregator.training.runs import Runs
from aggregator.trust.callers import caller_of, owner_of
from aggregator.trust.endpoint import AuditLine, Endpoint
from edge_attention.core.errors import InvalidArgument
from edge_attention.core.messages import training as jobs
from edge_attention.wire import services

CHUNK = 1024 * 1024

STARTED = AuditLine("run_started", lambda q, r: {"run": r.run.id if r else "", "job": _job(q)})
STOPPED = AuditLine("run_stopped", lambda q, r: {"run": q.run})
RESUMED = AuditLine("run_resumed", lambda q, r: {"run": q.run})
DELETED = AuditLine("run_deleted", lambda q, r: {"run": r.run.id if r else q.run})
READ = AuditLine("parameters_read", lambda q, r: {"run": q.run, "version": q.version})
MODEL_READ = AuditLine("model_read", lambda q, r: {"run": q.run, "version": q.version})
PREDICTED = AuditLine("samples_predicted", lambda q, r: {"run": q.run, "samples": len(q.ids)})


class TrainingApi:
    def __init__(self, runs: Runs, budgets: Budgets | None = None, turns: Turns | None = None) -> None:
        self._runs = runs
        self._budgets = budgets or Budgets()
        self._turns = turns or Turns()

    def endpoints(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint(services.START_RUN, self.start, "user", STARTED),
            Endpoint(services.PLAN_RUN, self.plan, "user"),
            Endpoint(services.WATCH_RUN, self.watch, "viewer"),
            Endpoint(services.STOP_RUN, self.stop, "operator", STOPPED),
            Endpoint(services.RESUME_RUN, self.resume, "operator", RESUMED),
            Endpoint(services.DELETE_RUN, self.delete, "operator", DELETED),
            Endpoint(services.DESCRIBE_RUN, self.describe, "viewer"),
            Endpoint(services.LIST_RUNS, self.list, "viewer"),
            Endpoint(services.GET_PARAMETERS, self.parameters, "user", READ),
            Endpoint(services.GET_MODEL, self.model, "user", MODEL_READ),
            Endpoint(services.PREDICT, self.predict, "user", PREDICTED),
        )

    async def start(self, request: jobs.StartRunRequest, call: Any) -> jobs.StartRunResponse:
        with self._budgets.take(PLANNING, caller_of(call)):
            run = await self._runs.start(request.any_job, owner_of(call))
        return jobs.StartRunResponse(run)

    async def plan(self, request: jobs.PlanRunRequest, call: Any) -> jobs.PlanRunResponse:
        with self._budgets.take(PLANNING, caller_of(call)):
            return await self._runs.plan(request.any_job)

    async def watch(
        self, request: jobs.WatchRunRequest, call: Any
    ) -> AsyncIterator[jobs.TrainingRound | jobs.TrainingRun]:
        with self._budgets.take(WATCHES, caller_of(call)):
            async for event in self._runs.watch(request.run, request.after_round):
                yield event

    async def stop(self, request: jobs.StopRunRequest, call: Any) -> jobs.StopRunResponse:
        return jobs.StopRunResponse(await self._runs.stop(request.run))

    async def resume(self, request: jobs.ResumeRunRequest, call: Any) -> jobs.ResumeRunResponse:
        return jobs.ResumeRunResponse(await self._runs.resume_run(request.run))

    async def delete(self, request: jobs.DeleteRunRequest, call: Any) -> jobs.DeleteRunResponse:
        return jobs.DeleteRunResponse(await self._runs.delete(request.run))

    async def describe(self, request: jobs.DescribeRunRequest, call: Any) -> jobs.DescribeRunResponse:
        return jobs.DescribeRunResponse(self._runs.describe(request.run))

    async def list(self, request: jobs.ListRunsRequest, call: Any) -> jobs.ListRunsResponse | bytes:
        runs = self._runs.list()
        return await listed(
            services.LIST_RUNS, call, len(runs), lambda: jobs.ListRunsResponse(runs), self._turns
        )

    async def parameters(
        self, request: jobs.GetParametersRequest, call: Any
    ) -> AsyncIterator[jobs.ParametersChunk]:
        with self._budgets.take(DOWNLOADS, caller_of(call)):
            # A file is verified before its first byte leaves, and all of it is read: neither by the loop.
            stream = await asyncio.to_thread(
                self._runs.parameters, request.run, request.version, request.best
            )
            while (piece := await asyncio.to_thread(next, stream.pieces, None)) is not None:
                yield jobs.ParametersChunk(stream.version, stream.size, piece)

    async def model(self, request: jobs.GetModelRequest, call: Any) -> AsyncIterator[jobs.ModelChunk]:
        with self._budgets.take(EXPORTS, caller_of(call)):
            async with self._runs.model(request.run, request.version, request.best) as model:
                file = await asyncio.to_thread(model.path.open, "rb")
                with file:
                    size = os.fstat(file.fileno()).st_size
                    yield jobs.ModelChunk(model.version, size, b"", model.reads)
                    while data := await asyncio.to_thread(file.read, CHUNK):
                        yield jobs.ModelChunk(model.version, size, data)

    async def predict(self, request: jobs.PredictRequest, call: Any) -> jobs.PredictResponse:
        if not 0 < len(request.ids) <= PREDICTED_SAMPLES:
            raise InvalidArgument(
                f"bound predicted-samples: {len(request.ids):,} ids, and one call takes 1 to "
                f"{PREDICTED_SAMPLES:,}; ask in several"
            )
        with self._budgets.take(EXPORTS, caller_of(call)):
            return await self._runs.predict(request.run, request.version, request.best, request.ids)


def _job(request: jobs.StartRunRequest) -> str:
    return "" if request.any_job is None else request.any_job.name
