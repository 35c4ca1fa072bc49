"""Roles, tokens and TLS of the protocol's calls, as stock `tritonclient` meets them."""

from __future__ import annotations

import asyncio
import json

import pytest
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from aggregator.server import ServerSettings, running
from aggregator.trust.trust import TrustSettings


def test_who_may_what(tmp_path):
    async def scenario():
        boot = tmp_path / "boot"
        trust = TrustSettings(bootstrap=boot)
        settings = ServerSettings("127.0.0.1", 0, tmp_path / "state", "127.0.0.1", None, 10.0, 60.0, trust)
        async with running(settings) as port:
            tls = {"ssl": True, "root_certificates": str(boot / "authority.pem")}
            async with triton.InferenceServerClient(f"127.0.0.1:{port}", **tls) as client:

                async def refused(status, call, *arguments, role=None):
                    headers = (
                        {"authorization": f"Bearer {(boot / role).read_text().strip()}"} if role else None
                    )
                    with pytest.raises(InferenceServerException) as error:
                        await call(*arguments, headers=headers)
                    assert error.value.status() == f"StatusCode.{status}", error.value
                    return error.value.message()

                await refused("UNAUTHENTICATED", client.is_server_live)
                await refused("UNAUTHENTICATED", client.get_model_metadata, "m")
                viewer = {"role": "viewer-token"}
                assert await client.is_server_live(
                    headers={"authorization": f"Bearer {(boot / 'viewer-token').read_text().strip()}"}
                )
                await refused("NOT_FOUND", client.get_model_metadata, "m", **viewer)
                said = await refused("PERMISSION_DENIED", client.infer, "m", [], **viewer)
                assert "ModelInfer needs the role user" in said
                await refused(
                    "PERMISSION_DENIED", client.register_system_shared_memory, "r", "/r", 1, **viewer
                )
                said = await refused("PERMISSION_DENIED", client.unload_model, "m", **viewer)
                assert "RepositoryModelUnload needs the role operator" in said
                operator = {"role": "operator-token"}
                await refused("NOT_FOUND", client.infer, "m", [], **operator)
                await refused("NOT_FOUND", client.unload_model, "m", **operator)
                await refused("NOT_FOUND", client.load_model, "m", **operator)

    asyncio.run(scenario())
    lines = [json.loads(line) for line in (tmp_path / "state" / "audit.jsonl").read_text().splitlines()]
    found = {line["event"]: line for line in lines}
    assert found["model_unloaded"]["model"] == found["model_loaded"]["model"] == "m"
    assert found["model_loaded"]["outcome"] == "failed"
    assert found["model_loaded"]["subject"].startswith("operator/")
