"""What KServe's Python client asks of a server of the protocol; run by an environment that has `kserve`.

python asks.py GRPC-ADDRESS HTTP-URL
"""

from __future__ import annotations

import asyncio
import sys

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig

FIRST, SECOND = np.arange(16, dtype=np.int32)[None], np.ones((1, 16), np.int32)


def request(raw: bool) -> InferRequest:
    inputs = []
    for name, array in (("INPUT0", FIRST), ("INPUT1", SECOND)):
        inputs.append(InferInput(name, [1, 16], "INT32"))
        if raw:
            inputs[-1].set_data_from_numpy(array)
        else:
            inputs[-1].data = array.reshape(-1).tolist()
    return InferRequest("simple", inputs, request_id="k1")


def right(response) -> None:
    found = {one.name: one.as_numpy() for one in response.outputs}
    np.testing.assert_array_equal(found["OUTPUT0"].reshape(1, 16), FIRST + SECOND)
    np.testing.assert_array_equal(found["OUTPUT1"].reshape(1, 16), FIRST - SECOND)
    assert response.id == "k1", response.id


async def grpc(address: str) -> None:
    client = InferenceGRPCClient(address, timeout=60)
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("simple")
    for raw in (True, False):
        right(await client.infer(request(raw), timeout=60))
    await client.close()


async def rest(url: str) -> None:
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=60))
    assert await client.is_server_live(url)
    assert await client.is_server_ready(url)
    assert await client.is_model_ready(url, "simple")
    for raw in (True, False):
        right(await client.infer(url, request(raw), model_name="simple"))


if __name__ == "__main__":
    asyncio.run(grpc(sys.argv[1]))
    print("kserve over gRPC: right")
    asyncio.run(rest(sys.argv[2]))
    print("kserve over REST: right")
